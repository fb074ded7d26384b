"""What does every step measure in a block?

Each function reduces one activation to a scalar inside the compiled block, over all tokens that the block sees: under a mesh, the
global microbatch. Means over tokens are exact under gradient accumulation, where microbatches are averaged.

B batch, T positions, D width, L blocks.
"""

import jax
import jax.numpy as jnp

from sparsecod_jax.stats import moments
from sparsecod_jax.tree import at_least_float32


def token_variance(z_BTD: jax.Array) -> jax.Array:
    """Unbiased variance over the channels of each token, [B, T].

    From sums and sums of squares, so that all statistics of a block are read off in one pass; the relative rounding error is that of the
    dtype times 1 + mean^2 / variance.
    """
    D = z_BTD.shape[-1]
    z_BTD = at_least_float32(z_BTD)
    around_mean_BT = jnp.square(z_BTD).sum(axis=-1) - jnp.square(z_BTD.sum(axis=-1)) / D
    return jnp.maximum(around_mean_BT, 0) / (D - 1)


def variance(z_BTD: jax.Array) -> jax.Array:
    """Mean over tokens of the unbiased variance over channels: the paper's layer variance, scalar."""
    return token_variance(z_BTD).mean()


def branch_norm(z_BTD: jax.Array) -> jax.Array:
    """Mean over tokens of the L2 norm, scalar."""
    return jnp.linalg.norm(at_least_float32(z_BTD), axis=-1).mean()


def update_cosine(x_BTD: jax.Array, y_BTD: jax.Array) -> jax.Array:
    """Mean over tokens of cos(x, y - x) for a block that maps x to y; 0 for a token that it does not change."""
    x, update = (
        at_least_float32(x_BTD),
        at_least_float32(y_BTD) - at_least_float32(x_BTD),
    )
    lengths = jnp.linalg.norm(x, axis=-1) * jnp.linalg.norm(update, axis=-1)
    dots = jnp.sum(x * update, axis=-1)
    return jnp.where(lengths > 0, dots / jnp.where(lengths > 0, lengths, 1), 0).mean()


def block_stats(
    x_BTD, attention_BTD, ffn_BTD, y_BTD, *, with_moments: bool
) -> dict[str, jax.Array]:
    """Scalars of one block, under the names that metrics.jsonl gives them.

    Args:
      x_BTD: the block's input.
      attention_BTD: what attention adds to the stream.
      ffn_BTD: what the FFN adds to the stream.
      y_BTD: the block's output, before any final norm.
      with_moments: adds the costly statistics of `moments`.
    """
    x, attention, ffn, y = jax.lax.stop_gradient((x_BTD, attention_BTD, ffn_BTD, y_BTD))
    stats = {
        "variance/residual": variance(y),
        "variance/attention": variance(attention),
        "variance/ffn": variance(ffn),
        "norm/attention": branch_norm(attention),
        "norm/ffn": branch_norm(ffn),
        "cosine/update": update_cosine(x, y),
    }
    if with_moments:
        for name, tap in (("residual", y), ("attention", attention), ("ffn", ffn)):
            stats |= {
                f"moments/{name}/{key}": value
                for key, value in moments.moments(tap).items()
            }
            token_variances_BT = token_variance(tap)
            stats[f"variance_median/{name}"] = jnp.median(token_variances_BT)
            stats[f"variance_without_first/{name}"] = token_variances_BT[:, 1:].mean()
    return stats


def layer_norms(blocks) -> jax.Array:
    """L2 norm of each block's tensors (parameters or gradients, stacked on axis 0), [L]."""
    squares = [
        jnp.sum(jnp.square(at_least_float32(leaf)), axis=range(1, leaf.ndim))
        for leaf in jax.tree.leaves(blocks)
    ]
    return jnp.sqrt(sum(squares))
