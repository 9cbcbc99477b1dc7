"""Turns a network with gates into the pruned one, and says what it costs."""
