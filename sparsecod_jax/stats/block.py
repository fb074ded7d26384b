"""What does every step measure in a block?

Per-step statistics: each function reduces one activation to a scalar inside the compiled
block, over all tokens that the block gets: under a mesh, the global microbatch. Means over
tokens are exact under gradient accumulation, where microbatches are averaged.

B batch, T positions, D width, L blocks.
"""

import jax
import jax.numpy as jnp

from sparsecod_jax.stats import moments
from sparsecod_jax.tree import at_least_float32


def token_variance(z_BTD: jax.Array) -> jax.Array:
    """Unbiased variance over the channels of each token, [B, T].

    (sum z^2 - (sum z)^2 / D) / (D - 1): from sums and sums of squares, so that all
    statistics of a block are read off in one pass. The relative rounding error is that of
    the dtype times 1 + mean^2 / variance.
    """
    D = z_BTD.shape[-1]
    z_BTD = at_least_float32(z_BTD)
    squares_BT = jnp.square(z_BTD).sum(axis=-1)
    around_mean_BT = squares_BT - jnp.square(z_BTD.sum(axis=-1)) / D
    # Rounding may leave a little less than nothing.
    return jnp.maximum(around_mean_BT, 0) / (D - 1)


def variance(z_BTD: jax.Array) -> jax.Array:
    """Mean over tokens of the unbiased variance over channels, scalar.

    The layer variance of arXiv 2603.15389.
    """
    return token_variance(z_BTD).mean()


def branch_norm(z_BTD: jax.Array) -> jax.Array:
    """Mean over tokens of the L2 norm of a branch, scalar.

    Beside the variance it shows a common offset of all channels, which variance leaves out.
    """
    return jnp.linalg.norm(at_least_float32(z_BTD), axis=-1).mean()


def update_cosine(x_BTD: jax.Array, y_BTD: jax.Array) -> jax.Array:
    """Mean over tokens of cos(x, y - x) for a block that maps x to y, scalar.

    A token that the block does not change counts as 0.
    """
    wide_BTD = at_least_float32(x_BTD)
    update_BTD = at_least_float32(y_BTD) - at_least_float32(x_BTD)
    input_norm_BT = jnp.linalg.norm(wide_BTD, axis=-1)
    lengths_BT = input_norm_BT * jnp.linalg.norm(update_BTD, axis=-1)
    dots_BT = jnp.sum(wide_BTD * update_BTD, axis=-1)
    # The inner `where` keeps 0/0 out of the values that the outer one does not select.
    cosines_BT = jnp.where(
        lengths_BT > 0, dots_BT / jnp.where(lengths_BT > 0, lengths_BT, 1), 0
    )
    return cosines_BT.mean()


def block_stats(
    x_BTD, attention_BTD, ffn_BTD, y_BTD, *, with_moments: bool
) -> dict[str, jax.Array]:
    """Scalars of one block, under the names that metrics.jsonl gives them.

    A new statistic is one line here and its row in docs/reference/run_files.md. None has a
    gradient.

    Args:
      x_BTD: the block's input.
      attention_BTD: what attention adds to the residual stream.
      ffn_BTD: what the FFN adds to the residual stream.
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
        stats |= _costly("residual", y)
        stats |= _costly("attention", attention)
        stats |= _costly("ffn", ffn)
    return stats


def _costly(name: str, z_BTD: jax.Array) -> dict[str, jax.Array]:
    """The statistics of one activation that are measured every k steps."""
    shape = moments.moments(z_BTD)
    stats = {f"moments/{name}/{key}": value for key, value in shape.items()}
    variances_BT = token_variance(z_BTD)
    stats[f"variance_median/{name}"] = jnp.median(variances_BT)
    # The first position often has massive activations, which outweigh all others.
    stats[f"variance_without_first/{name}"] = variances_BT[:, 1:].mean()
    return stats


def layer_norms(blocks) -> jax.Array:
    """L2 norm over all tensors of each block, [L].

    Args:
      blocks: a tree of parameters or gradients, stacked on axis 0.
    """
    squares = []
    for leaf in jax.tree.leaves(blocks):
        square = jnp.square(at_least_float32(leaf))
        squares.append(jnp.sum(square, axis=range(1, leaf.ndim)))
    return jnp.sqrt(sum(squares))
