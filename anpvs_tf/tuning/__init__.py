"""Sweeps training settings with keras-tuner."""
