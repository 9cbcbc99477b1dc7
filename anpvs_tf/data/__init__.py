"""Loads datasets and image folders, and feeds their batches to training and evaluation."""
