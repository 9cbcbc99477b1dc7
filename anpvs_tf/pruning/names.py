"""The names of the structures that ADMM can prune; imports no TensorFlow."""

# The unit that becomes zero: a weight; the weights of all filters at one place; a filter.
STRUCTURES = ("irregular", "column", "filter")
