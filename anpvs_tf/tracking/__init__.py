"""Shows runs in TensorBoard and in the trackers of experiments, over all that works on them."""
