"""What does a mixture of experts compute, and on which device?

Mixture of experts: tokens go to the devices of their experts and back, and no token is ever
dropped.

B batch, T positions, D width, F hidden width of an expert, E experts (inside `shard_map`,
those of this device), S slots (the top_k experts of a token), N tokens, R rows: the
(token, slot) pairs that this device multiplies, sorted by expert.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from sparsecod_jax.config import Model
from sparsecod_jax.model import hopper
from sparsecod_jax.model.grouped_matmul import grouped_matmul
from sparsecod_jax.model.layers import PRODUCT, SwiGLU, weight
from sparsecod_jax.model.router import route
from sparsecod_jax.parallel import sharding
from sparsecod_jax.tree import at_least_float32

# Logical axes of tokens, of slots, of the experts' matrices up and down.
_TOKENS = ("batch", "length", "width")
_SLOTS = ("batch", "length", None)
_INTO = ("experts", "expert_embed", "hidden")
_OUT = ("experts", "hidden", "expert_embed")


class MixtureOfExperts(nn.Module):
    """The gated sum of the top_k experts of each token, r(x).

    With a shared expert s(x) it is s(x) / (k + 1) + k / (k + 1) * r(x), for k = top_k.
    """

    cfg: Model

    @nn.compact
    def __call__(self, x_BTD):
        """The output, [B, T, D], and the router's statistics."""
        cfg, dtype = self.cfg, self.cfg.compute_dtype
        D, E, F = cfg.d_model, cfg.n_experts, cfg.d_ff
        router_DE = weight(self, "router", (D, E), ("embed", "router"), cfg.init_std)
        gate_EDF = weight(self, "gate", (E, D, F), _INTO, cfg.init_std).astype(dtype)
        up_EDF = weight(self, "up", (E, D, F), _INTO, cfg.init_std).astype(dtype)
        down_EFD = weight(self, "down", (E, F, D), _OUT, cfg.init_std).astype(dtype)

        # At full precision, as a small error of a logit may send a token elsewhere.
        wide_BTD = at_least_float32(x_BTD)
        router_DE = router_DE.astype(wide_BTD.dtype)
        logits_BTE = jnp.einsum("btd,de->bte", wide_BTD, router_DE, precision="highest")
        routing = route(logits_BTE, cfg.top_k, normalize=cfg.normalize_gates)

        mapped = sharding.shard_map(
            _exchange_and_run,
            (_TOKENS, _SLOTS, _SLOTS, _INTO, _INTO, _OUT),
            (_TOKENS, ()),
        )
        y_BTD, dropped = mapped(
            x_BTD, routing.experts_BTS, routing.gates_BTS, gate_EDF, up_EDF, down_EFD
        )
        if cfg.shared_expert:
            shared_BTD = SwiGLU(cfg, cfg.d_shared, name="shared")(x_BTD)
            y_BTD = (shared_BTD + cfg.top_k * y_BTD) / (cfg.top_k + 1)
        return y_BTD, routing.stats | {"router/dropped": dropped}


def _exchange_and_run(x_BTD, experts_BTS, gates_BTS, gate_EDF, up_EDF, down_EFD):
    """One device's tokens through the experts of all devices.

    The devices that share out the experts gather each other's tokens, run their own experts
    on them, and add up. A device must have room for all gathered rows, as all may be its
    own, so tokens go in as many chunks as there are devices, or fewer where these don't
    divide the tokens: the room stays that of one.

    Returns:
      The output, [B, T, D], and the slots of all devices less the rows that were multiplied,
      a scalar: how many were dropped, which is to be 0.
    """
    # Wide outside the loop over chunks, so that the gradients of the chunks are added wide.
    gate_EDF = at_least_float32(sharding.gather(gate_EDF, "expert_embed", 1))
    up_EDF = at_least_float32(sharding.gather(up_EDF, "expert_embed", 1))
    down_EFD = at_least_float32(sharding.gather(down_EFD, "expert_embed", 2))
    # Experts are numbered over all devices; this one holds E from here on.
    first_expert = sharding.position("experts") * len(gate_EDF)

    def chunk(x_ND, experts_NS, gates_NS):
        x_ND = sharding.gather(x_ND, "experts", 0)
        experts_NS = sharding.gather(experts_NS, "experts", 0)
        gates_NS = sharding.gather(gates_NS, "experts", 0)
        matrices = (w.astype(x_ND.dtype) for w in (gate_EDF, up_EDF, down_EFD))
        y_ND, rows = run_experts(
            x_ND,
            experts_NS - first_expert,
            gates_NS,
            *matrices,
            all_here=sharding.ways("experts") == 1,
        )
        # Each device gets its own tokens back, summed over the devices of their experts.
        # Tensor parallelism divides F, over which `down` sums, so that is a sum as well.
        y_ND = sharding.scatter_sum(y_ND, "experts", 0)
        return sharding.total(y_ND, "hidden"), rows

    tokens = [z.reshape(-1, z.shape[-1]) for z in (x_BTD, experts_BTS, gates_BTS)]
    chunks = math.gcd(sharding.ways("experts"), len(tokens[0]))
    if chunks == 1:
        y_ND, rows = chunk(*tokens)
    else:
        parts = [z.reshape(chunks, -1, z.shape[-1]) for z in tokens]
        # Nothing within a chunk is kept for the backward pass, which has the room of one too.
        run_again = jax.checkpoint(chunk)
        _, (y_ND, rows) = jax.lax.scan(
            lambda _, part: (None, run_again(*part)), None, parts
        )
    slots = sharding.ways("batch") * experts_BTS.size
    dropped = slots - sharding.total(rows.sum(), "batch")
    return y_ND.reshape(x_BTD.shape), dropped


def run_experts(
    x_ND, experts_NS, gates_NS, gate_EDF, up_EDF, down_EFD, *, all_here: bool = False
) -> tuple[jax.Array, jax.Array]:
    """The gated sum over those slots whose expert is one of these, 0 <= expert < E.

    Args:
      x_ND: tokens.
      experts_NS: of each token, which differ from one another.
      gates_NS: weights of the experts' outputs.
      gate_EDF, up_EDF, down_EFD: an expert is down(silu(gate(x)) * up(x)).
      all_here: every slot's expert is one of these.

    Returns:
      The sum, [N, D], and the number of rows multiplied for it.
    """
    N, S = experts_NS.shape
    E = len(gate_EDF)
    # A slot whose expert is elsewhere gets number E, so that sorting puts it last.
    is_here_NS = (experts_NS >= 0) & (experts_NS < E)
    expert_of_slot = jnp.where(is_here_NS, experts_NS, E).reshape(-1)
    sizes_E = jax.nn.one_hot(expert_of_slot, E, dtype=jnp.int32).sum(axis=0)
    # A token has at most min(S, E) of its slots here, which bounds the rows. Sorting the
    # order gives its inverse: where in the order each slot is.
    order = jnp.argsort(expert_of_slot)
    slot_of_row_R = order[: N * min(S, E)]
    row_of_slot_NS = jnp.argsort(order).reshape(N, S)

    x_RD = _rows_of_tokens(x_ND, slot_of_row_R, row_of_slot_NS)
    multiply = partial(_products, sizes_E=sizes_E, all_grouped=all_here)
    gate_RF, up_RF = multiply(x_RD, gate_EDF, up_EDF)
    (y_RD,) = multiply(nn.silu(gate_RF) * up_RF, down_EFD)
    y_NSD = _slots_of_rows(y_RD, slot_of_row_R, row_of_slot_NS)
    gated_NSD = at_least_float32(y_NSD) * gates_NS[:, :, None]
    y_ND = jnp.sum(gated_NSD, axis=1)
    return y_ND.astype(x_ND.dtype), jnp.minimum(sizes_E.sum(), len(x_RD))


def _products(x_RD, *matrices_EDF, sizes_E, all_grouped):
    """The rows times each of these matrices of their group."""

    def product(w_EDF):
        y_RF = grouped_matmul(x_RD, w_EDF, sizes_E, all_grouped)
        return checkpoint_name(y_RF, PRODUCT)

    if hopper.is_served(x_RD):
        # Side by side: so rows are read once, and so are their gradients, which otherwise
        # are added in a pass of their own.
        joined_EDF = jnp.concatenate(matrices_EDF, axis=2)
        return jnp.split(product(joined_EDF), len(matrices_EDF), axis=1)
    return [product(w_EDF) for w_EDF in matrices_EDF]


# Tokens to rows and rows to slots are each other's transposes. Both are stated here as reading
# at an index, which is fast where adding at an index, JAX's own transpose of it, is slow.


@jax.custom_vjp
def _rows_of_tokens(x_ND, slot_of_row_R, row_of_slot_NS):
    """The token of each row, [R, D]."""
    # Slots are numbered token by token, S each.
    return x_ND[slot_of_row_R // row_of_slot_NS.shape[1]]


@jax.custom_vjp
def _slots_of_rows(y_RD, slot_of_row_R, row_of_slot_NS):
    """The row of each slot, [N, S, D], zeros for a slot without a row."""
    return y_RD.at[row_of_slot_NS].get(mode="fill", fill_value=0)


def _rows_of_tokens_forward(x_ND, slot_of_row_R, row_of_slot_NS):
    x_RD = _rows_of_tokens(x_ND, slot_of_row_R, row_of_slot_NS)
    return x_RD, (slot_of_row_R, row_of_slot_NS)


def _rows_of_tokens_backward(indices, grad_RD):
    """A token's gradient is the sum of those of its rows."""
    grad_NSD = at_least_float32(_slots_of_rows(grad_RD, *indices))
    return grad_NSD.sum(axis=1).astype(grad_RD.dtype), None, None


def _slots_of_rows_forward(y_RD, slot_of_row_R, row_of_slot_NS):
    return _slots_of_rows(y_RD, slot_of_row_R, row_of_slot_NS), slot_of_row_R


def _slots_of_rows_backward(slot_of_row_R, grad_NSD):
    """A row's gradient is that of its slot."""
    return grad_NSD.reshape(-1, grad_NSD.shape[-1])[slot_of_row_R], None, None


_rows_of_tokens.defvjp(_rows_of_tokens_forward, _rows_of_tokens_backward)
_slots_of_rows.defvjp(_slots_of_rows_forward, _slots_of_rows_backward)
