"""The names of the costs that a run can be matched by; imports no TensorFlow."""

COSTS = ("flops", "parameters")
