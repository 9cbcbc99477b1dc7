"""Exports finished runs for TensorFlow Serving and LiteRT, and checks the exports."""
