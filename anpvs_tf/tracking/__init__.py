"""Shows runs in TensorBoard and in the trackers of experiments, over all processes of each."""
