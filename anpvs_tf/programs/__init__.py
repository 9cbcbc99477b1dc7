"""Holds the programs of `bin/` and the console commands: their flags, and the order of the work."""
