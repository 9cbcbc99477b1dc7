"""The names of the ways to spread a run over devices; imports no TensorFlow."""

STRATEGIES = ("auto", "default", "mirrored", "multi_worker")
XLA = ("auto", "on", "off")
