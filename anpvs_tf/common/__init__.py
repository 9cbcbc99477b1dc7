"""Holds what all packages share: errors, files, progress, seeds, how a program starts and ends."""
