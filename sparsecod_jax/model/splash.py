"""How is attention computed on a TPU?

Attention on TPUs: block by block in fast memory, by the kernel that JAX ships under the name
of splash attention.

B batch, T positions, S padded positions, H query heads, J key/value heads, K head size,
P padded head size.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as kernel,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as masks,
)

from sparsecod_jax.model.layers import PRODUCT
from sparsecod_jax.parallel import sharding

# The kernel takes positions and head sizes in multiples of this.
LANES = 128

# Positions of a query or key block, as other TPU codebases have it; not measured here.
BLOCK = 512

# Logical axes of queries, of keys and values, of segments.
_QUERIES = ("batch", "length", "heads", "head_size")
_KEYS = ("batch", "length", "kv_heads", "head_size")
_SEGMENTS = ("batch", "length")


def splash_attention(
    q_BTHK, k_BTJK, v_BTJK, segments_BT=None, *, interpret: bool = False
) -> jax.Array:
    """Causal attention, [B, T, H, K].

    Queries of head h read key/value head h // (H / J). Padding changes nothing: a padded key
    lies after every true query, a padded dimension adds zero to a product.

    Args:
      q_BTHK: queries.
      k_BTJK: keys.
      v_BTJK: values.
      segments_BT: attention stays within equal numbers; None for no segments.
      interpret: runs the kernel on any platform, slowly.
    """
    H, J, K = q_BTHK.shape[2], k_BTJK.shape[2], q_BTHK.shape[3]
    if J % sharding.ways("kv_heads"):
        # Keys are then on every device, but a device's queries read only some of them. With
        # a key head for each query head, both are divided in the same way.
        k_BTJK, v_BTJK = (jnp.repeat(z, H // J, axis=2) for z in (k_BTJK, v_BTJK))

    def on_device(q_BTHK, k_BTJK, v_BTJK, *segments):
        T = q_BTHK.shape[1]
        # The kernel does not scale the logits.
        scaled_BTHK = q_BTHK * K**-0.5
        q_BHSP, k_BJSP, v_BJSP = (_padded(z) for z in (scaled_BTHK, k_BTJK, v_BTJK))
        _, heads, length, _ = q_BHSP.shape
        # The kernel knows no batch.
        attention: Any = jax.vmap(_kernel(heads, length, interpret))
        padded = [jnp.pad(z_BT, ((0, 0), (0, -T % LANES))) for z_BT in segments]
        # Queries and keys are the same positions.
        ids = kernel.SegmentIds(*padded, *padded) if padded else None
        out_BHSP = attention(q_BHSP, k_BJSP, v_BJSP, ids)
        return (out_BHSP.swapaxes(1, 2)[:, :T, :, :K],)

    arrays, axes = [q_BTHK, k_BTJK, v_BTJK], [_QUERIES, _KEYS, _KEYS]
    if segments_BT is not None:
        arrays.append(segments_BT)
        axes.append(_SEGMENTS)
    (out_BTHK,) = sharding.shard_map(on_device, axes, (_QUERIES,))(*arrays)
    return out_BTHK


def _padded(z_BTHK):
    """Heads before positions, both last axes padded with zeros, [B, H, S, P]."""
    _, T, _, K = z_BTHK.shape
    widths = ((0, 0), (0, 0), (0, -T % LANES), (0, -K % LANES))
    return jnp.pad(z_BTHK.swapaxes(1, 2), widths)


def _kernel(heads: int, length: int, interpret: bool):
    """The kernel for one sequence of `length` padded positions."""
    # The largest block that divides the positions; LANES always does.
    block = next(size for size in (BLOCK, BLOCK // 2, LANES) if length % size == 0)
    sizes = kernel.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    mask = masks.MultiHeadMask([masks.CausalMask((length, length))] * heads)
    return kernel.make_splash_mha_single_device(
        mask, block_sizes=sizes, interpret=interpret, residual_checkpoint_name=PRODUCT
    )
