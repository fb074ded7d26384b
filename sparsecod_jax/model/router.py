"""Which experts does a token go to, and how evenly are they used?

B batch, T positions, E experts, S slots (the top_k experts of a token).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sparsecod_jax.config import Model
from sparsecod_jax.parallel import sharding


class Routing(NamedTuple):
    """The choice of each token, and what the choices of all tokens amount to."""

    experts_BTS: jax.Array  # int32
    gates_BTS: jax.Array  # weights of the experts' outputs
    stats: dict[
        str, jax.Array
    ]  # scalars, and counts [E]; gradients flow through the two losses


def route(logits_BTE: jax.Array, top_k: int, *, normalize: bool) -> Routing:
    """Sends each token to the `top_k` experts of highest softmax probability; the gates are these, or, normalised, these over their sum."""
    probabilities_BTE = jax.nn.softmax(logits_BTE)
    # Mapped, as the compiler does not divide a top_k and would gather the probabilities of all devices.
    axes = ("batch", "length", None)
    (experts_BTS,) = sharding.shard_map(
        lambda local_BTE: (jax.lax.top_k(local_BTE, top_k)[1],), [axes], [axes]
    )(probabilities_BTE)
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


def load_balance_loss(probabilities_BTE: jax.Array, counts_E: jax.Array) -> jax.Array:
    """E times the sum over experts of (share of all choices) x (mean probability): 1 when both are uniform (arXiv 2101.03961, eq. 4).

    Both factors are means over all tokens of a global microbatch; the counts have no gradient.
    """
    share_E = counts_E / counts_E.sum()
    return probabilities_BTE.shape[-1] * jnp.sum(
        share_E * probabilities_BTE.mean(axis=(0, 1))
    )


def z_loss(logits_BTE: jax.Array) -> jax.Array:
    """Mean over tokens of logsumexp(logits)^2 (arXiv 2202.08906, eq. 5)."""
    return jnp.square(jax.nn.logsumexp(logits_BTE, axis=-1)).mean()


def auxiliary_loss(cfg: Model, stats: Mapping[str, Any]) -> jax.Array | float:
    """What a mixture of experts adds to the cross-entropy: the weighted means over blocks of its losses; 0 for a dense model."""
    if not cfg.n_experts:
        return 0.0
    return (
        cfg.load_balance_weight * stats["router/load_balance_loss"].mean()
        + cfg.router_z_weight * stats["router/z_loss"].mean()
    )
