"""The names of the ways to search; imports no TensorFlow."""

TUNERS = ("random", "bayesian", "hyperband", "grid")
