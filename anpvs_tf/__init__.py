"""Adversarial Neural Pruning with Vulnerability Suppression for TensorFlow.

Madaan, Shin, Hwang: Adversarial Neural Pruning with Latent Vulnerability
Suppression, ICML 2020 (arXiv 1908.04355). "Eq." in this package's docstrings
refers to that paper.

`__init__.pyi` lists the names that a user of the library needs. Each is imported when it is
first used, because TensorFlow takes seconds to import.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
