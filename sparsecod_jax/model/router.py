"""Which experts does a token go to?

Router: the choice of each token, and the losses that keep it even and small.

B batch, T positions, E experts, S slots (the top_k experts of a token).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sparsecod_jax.config import Model
from sparsecod_jax.parallel import sharding


class Routing(NamedTuple):
    """The choice of each token, and what the choices of all tokens amount to.

    Attributes:
      experts_BTS: int32.
      gates_BTS: weights of the experts' outputs.
      stats: scalars, and counts [E]; gradients flow through the two losses.
    """

    experts_BTS: jax.Array
    gates_BTS: jax.Array
    stats: dict[str, jax.Array]


def route(logits_BTE: jax.Array, top_k: int, *, normalize: bool) -> Routing:
    """Sends each token to the `top_k` experts of highest softmax probability.

    Args:
      logits_BTE: in at least float32.
      top_k: experts per token.
      normalize: the gates are the probabilities of the chosen experts over their sum,
        instead of the probabilities themselves.
    """
    probabilities_BTE = jax.nn.softmax(logits_BTE)
    experts_BTS = _largest(probabilities_BTE, top_k)
    chosen_BTSE = jax.nn.one_hot(experts_BTS, logits_BTE.shape[-1], dtype=jnp.bool_)
    gates_BTS = jnp.where(chosen_BTSE, probabilities_BTE[:, :, None, :], 0).sum(axis=-1)
    if normalize:
        gates_BTS = gates_BTS / gates_BTS.sum(axis=-1, keepdims=True)
    counts_E = chosen_BTSE.sum(axis=(0, 1, 2), dtype=jnp.int32)
    kept_BTS = jax.lax.stop_gradient(gates_BTS)
    stats = {
        "router/load_balance_loss": load_balance_loss(probabilities_BTE, counts_E),
        "router/z_loss": z_loss(logits_BTE),
        "router/gate_sum": kept_BTS.sum(axis=-1).mean(),
        "router/gate_square_sum": jnp.square(kept_BTS).sum(axis=-1).mean(),
        "router/counts": counts_E,
    }
    return Routing(experts_BTS, gates_BTS, stats)


def _largest(probabilities_BTE, top_k: int) -> jax.Array:
    """The numbers of the `top_k` largest, [B, T, S]."""

    def on_device(local_BTE):
        return (jax.lax.top_k(local_BTE, top_k)[1],)

    # Mapped, as the compiler does not divide a top_k over devices and would gather the
    # probabilities of all.
    axes = ("batch", "length", None)
    (experts_BTS,) = sharding.shard_map(on_device, [axes], [axes])(probabilities_BTE)
    return experts_BTS


def load_balance_loss(probabilities_BTE: jax.Array, counts_E: jax.Array) -> jax.Array:
    """E times the sum over experts of (share of all choices) x (mean probability).

    1 when both are uniform (arXiv 2101.03961, eq. 4). Both factors are means over all tokens
    of a global microbatch; the counts have no gradient.
    """
    share_E = counts_E / counts_E.sum()
    mean_E = probabilities_BTE.mean(axis=(0, 1))
    return probabilities_BTE.shape[-1] * jnp.sum(share_E * mean_E)


def z_loss(logits_BTE: jax.Array) -> jax.Array:
    """Mean over tokens of logsumexp(logits)^2 (arXiv 2202.08906, eq. 5)."""
    return jnp.square(jax.nn.logsumexp(logits_BTE, axis=-1)).mean()


def auxiliary_loss(cfg: Model, stats: Mapping[str, Any]) -> jax.Array | float:
    """What a mixture of experts adds to the cross-entropy; 0 for a dense model.

    The means over blocks of its two losses, weighted.
    """
    if not cfg.n_experts:
        return 0.0
    load_balance = cfg.load_balance_weight * stats["router/load_balance_loss"].mean()
    return load_balance + cfg.router_z_weight * stats["router/z_loss"].mean()
