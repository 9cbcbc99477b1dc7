"""Builds networks with learned gates, and puts gates into networks of the user's."""
