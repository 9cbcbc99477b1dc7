"""The parts of a run: its settings and their defaults, its directory and its records."""
