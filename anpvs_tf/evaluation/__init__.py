"""Measures accuracy under attack, keeps what is known of each example, and checks the figures."""
