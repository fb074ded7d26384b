"""What does a mixture of experts compute, and on which device? No token is ever dropped.

B batch, T positions, D width, F hidden width of an expert, E experts (inside `shard_map`, those of this device), S slots (the top_k
experts of a token), N tokens, R rows: the (token, slot) pairs that this device multiplies, sorted by expert.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from sparsecod_jax import sharding
from sparsecod_jax.config import Model
from sparsecod_jax.model.grouped_matmul import grouped_matmul
from sparsecod_jax.model.layers import SwiGLU, weight
from sparsecod_jax.model.router import route
from sparsecod_jax.stats.taps import at_least_float32


class MixtureOfExperts(nn.Module):
    """The gated sum of the top_k experts of each token, r(x); with a shared expert s(x): s(x)/(k+1) + k/(k+1) * r(x)."""

    cfg: Model

    @nn.compact
    def __call__(self, x_BTD):
        """The output, [B, T, D], and the router's statistics."""
        cfg, dtype = self.cfg, self.cfg.compute_dtype
        D, E, F = cfg.d_model, cfg.n_experts, cfg.d_ff
        router_DE = weight(self, "router", (D, E), ("embed", "router"), cfg.init_std)
        inward, outward = ("experts", "expert_embed", "hidden"), ("experts", "hidden", "expert_embed")
        gate_EDF = weight(self, "gate", (E, D, F), inward, cfg.init_std).astype(dtype)
        up_EDF = weight(self, "up", (E, D, F), inward, cfg.init_std).astype(dtype)
        down_EFD = weight(self, "down", (E, F, D), outward, cfg.init_std).astype(dtype)

        wide_BTD = at_least_float32(x_BTD)
        logits_BTE = jnp.einsum("btd,de->bte", wide_BTD, router_DE.astype(wide_BTD.dtype), precision="highest")
        routing = route(logits_BTE, cfg.top_k, normalize=cfg.normalize_gates)
        tokens, slots = ("batch", "length", "width"), ("batch", "length", None)
        run = sharding.shard_map(_exchange_and_run, (tokens, slots, slots, inward, inward, outward), (tokens, ()))
        y_BTD, dropped = run(x_BTD, routing.experts_BTS, routing.gates_BTS, gate_EDF, up_EDF, down_EFD)
        if cfg.shared_expert:
            shared_BTD = SwiGLU(cfg, cfg.d_shared, name="shared")(x_BTD)
            y_BTD = (shared_BTD + cfg.top_k * y_BTD) / (cfg.top_k + 1)
        return y_BTD, routing.stats | {"router/dropped": dropped}


def _exchange_and_run(x_BTD, experts_BTS, gates_BTS, gate_EDF, up_EDF, down_EFD):
    """One device's tokens through the experts of all devices; also the slots of all devices less the rows that were multiplied.

    The devices that share out the experts gather each other's tokens, run their own experts on them, and add up. A device must have
    room for all gathered rows, as all may be its own, so tokens go in as many chunks as there are devices: the room stays that of one.
    """
    gate_EDF = sharding.gather(gate_EDF, "expert_embed", 1)
    up_EDF = sharding.gather(up_EDF, "expert_embed", 1)
    down_EFD = sharding.gather(down_EFD, "expert_embed", 2)
    first_expert = sharding.position("experts") * len(gate_EDF)

    def run(x_ND, experts_NS, gates_NS):
        x_ND, experts_NS, gates_NS = (sharding.gather(part, "experts", 0) for part in (x_ND, experts_NS, gates_NS))
        y_ND, rows = run_experts(x_ND, experts_NS - first_expert, gates_NS, gate_EDF, up_EDF, down_EFD)
        return sharding.total(sharding.scatter_sum(y_ND, "experts", 0), "hidden"), rows

    tokens = [z.reshape(-1, z.shape[-1]) for z in (x_BTD, experts_BTS, gates_BTS)]
    chunks = math.gcd(sharding.ways("experts"), len(tokens[0]))
    if chunks == 1:
        y_ND, rows = run(*tokens)
    else:
        parts = [z.reshape(chunks, -1, z.shape[-1]) for z in tokens]
        _, (y_ND, rows) = jax.lax.scan(lambda _, part: (None, jax.checkpoint(run)(*part)), None, parts)
    dropped = sharding.ways("batch") * experts_BTS.size - sharding.total(rows.sum(), "batch")
    return y_ND.reshape(x_BTD.shape), dropped


def run_experts(x_ND, experts_NS, gates_NS, gate_EDF, up_EDF, down_EFD) -> tuple[jax.Array, jax.Array]:
    """The gated sum over those slots whose expert is one of these, 0 <= expert < E, and the number of slots that were given a row.

    The experts of a token differ from one another.
    """
    N, S = experts_NS.shape
    E = len(gate_EDF)
    expert_of_slot = jnp.where((experts_NS >= 0) & (experts_NS < E), experts_NS, E).reshape(-1)
    sizes_E = jax.nn.one_hot(expert_of_slot, E, dtype=jnp.int32).sum(axis=0)
    slot_of_row = jnp.argsort(expert_of_slot)[: N * min(S, E)]
    slot_of_row = jnp.where(jnp.arange(len(slot_of_row)) < sizes_E.sum(), slot_of_row, N * S)
    row_of_slot = jnp.full(N * S, len(slot_of_row)).at[slot_of_row].set(jnp.arange(len(slot_of_row)), mode="drop")

    x_RD = _take(jnp.repeat(x_ND, S, axis=0), slot_of_row, row_of_slot)
    hidden_RF = nn.silu(grouped_matmul(x_RD, gate_EDF, sizes_E)) * grouped_matmul(x_RD, up_EDF, sizes_E)
    y_RD = grouped_matmul(hidden_RF, down_EFD, sizes_E)
    y_NSD = _take(y_RD, row_of_slot, slot_of_row).reshape(N, S, -1)
    y_ND = jnp.sum(at_least_float32(y_NSD) * gates_NS[:, :, None], axis=1)
    return y_ND.astype(x_ND.dtype), (row_of_slot < len(slot_of_row)).sum()


@jax.custom_vjp
def _take(z, index, inverse):
    """z[index], zeros where the index is beyond the end. The gradient is taken by the inverse index, as adding at an index is slow."""
    return z.at[index].get(mode="fill", fill_value=0)


_take.defvjp(lambda z, index, inverse: (_take(z, index, inverse), (index, inverse)), lambda saved, g: (_take(g, *saved[::-1]), None, None))
