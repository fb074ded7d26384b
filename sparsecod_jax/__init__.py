"""Does depth pay? Pretraining, in-step variance statistics and layer scores for Pre-LN language models, in JAX."""

__version__ = "0.1.0"
