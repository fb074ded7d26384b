"""Does depth pay? Pretraining with in-step variance statistics for Pre-LN language
models, in JAX.
"""

__version__ = "0.1.0"
