"""Measures accuracy under attack, keeps each example's state, and checks the results."""
