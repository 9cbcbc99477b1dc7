"""Builds networks with learned gates, and puts gates into the user's own networks."""
