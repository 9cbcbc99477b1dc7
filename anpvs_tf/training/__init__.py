"""Trains a run from its first step to its results, and resumes it."""
