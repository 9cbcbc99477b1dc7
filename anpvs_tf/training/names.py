"""The names of the actions at a loss that is not finite; imports no TensorFlow."""

ACTIONS = ("stop", "skip")
