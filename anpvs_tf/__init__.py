"""Adversarial Neural Pruning with Vulnerability Suppression for TensorFlow.

Madaan, Shin, Hwang: Adversarial Neural Pruning with Latent Vulnerability
Suppression, ICML 2020 (arXiv 1908.04355). "Eq." in this package's docstrings
refers to that paper.
"""

__version__ = "0.1.0"
