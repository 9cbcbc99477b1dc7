"""Sweeps over training settings on keras-tuner."""
