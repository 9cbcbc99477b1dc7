"""Holds the training methods: the table of them, their losses, adversary, optimizer and step."""
