"""Which name has a leaf of a tree, and how is it cast?

Pytrees: the names under which checkpoints, exports and the optimizer know each array, and
the precision in which statistics and norms are computed.
"""

import jax
import jax.numpy as jnp


def names(tree) -> list[str]:
    """A path such as params/blocks/ffn/up for each leaf, in the tree's order."""
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]


def at_least_float32(x: jax.Array) -> jax.Array:
    """The array in float32, or in its own dtype where that is wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
