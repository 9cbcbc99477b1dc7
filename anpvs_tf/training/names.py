"""The names of what training does at a loss that is not finite; imports no TensorFlow."""

ACTIONS = ("stop", "skip")
