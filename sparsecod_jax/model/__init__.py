"""What is computed? A Pre-LN decoder in Flax Linen."""

from sparsecod_jax.model.transformer import Transformer

__all__ = ["Transformer"]
