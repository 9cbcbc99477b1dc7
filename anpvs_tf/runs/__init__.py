"""Holds what a run is: its settings and their defaults, its directory and its records."""
