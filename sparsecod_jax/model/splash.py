"""How is attention computed on a TPU? Block by block in fast memory, by the kernel that JAX ships under the name of splash attention.

B batch, T positions, S padded positions, H query heads, J key/value heads, K head size, P padded head size.
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

LANES = 128  # the kernel takes positions and head sizes in multiples of this
BLOCK = 512  # positions of a query or key block, as other TPU codebases have it; not measured here


def splash_attention(
    q_BTHK, k_BTJK, v_BTJK, segments_BT=None, *, interpret: bool = False
) -> jax.Array:
    """Causal attention, [B, T, H, K], within segments where given; queries of head h read key/value head h // (H/J).

    Padding changes nothing: a padded key lies after every true query, a padded dimension adds zero to a product.
    """
    H, J, K = q_BTHK.shape[2], k_BTJK.shape[2], q_BTHK.shape[3]
    if J % sharding.ways(
        "kv_heads"
    ):  # then each device needs other heads than those it would hold
        k_BTJK, v_BTJK = (jnp.repeat(z, H // J, axis=2) for z in (k_BTJK, v_BTJK))
    queries, keys, tokens = (
        ("batch", "length", "heads", "head_size"),
        ("batch", "length", "kv_heads", "head_size"),
        ("batch", "length"),
    )

    def on_device(q_BTHK, k_BTJK, v_BTJK, *segments):
        T = q_BTHK.shape[1]
        q_BHSP, k_BJSP, v_BJSP = (
            _padded(z) for z in (q_BTHK * K**-0.5, k_BTJK, v_BTJK)
        )
        attention: Any = jax.vmap(_kernel(q_BHSP.shape[1], q_BHSP.shape[2], interpret))
        padded = [
            jnp.pad(segments_BT, ((0, 0), (0, -T % LANES))) for segments_BT in segments
        ]
        out_BHSP = attention(
            q_BHSP,
            k_BJSP,
            v_BJSP,
            kernel.SegmentIds(*padded, *padded) if padded else None,
        )
        return (out_BHSP.swapaxes(1, 2)[:, :T, :, :K],)

    segments = () if segments_BT is None else (segments_BT,)
    mapped = sharding.shard_map(
        on_device, (queries, keys, keys, *[tokens] * len(segments)), (queries,)
    )
    return mapped(q_BTHK, k_BTJK, v_BTJK, *segments)[0]


def _padded(z_BTHK):
    """Heads before positions, both last axes padded with zeros."""
    _, T, _, K = z_BTHK.shape
    return jnp.pad(
        z_BTHK.swapaxes(1, 2), ((0, 0), (0, 0), (0, -T % LANES), (0, -K % LANES))
    )


def _kernel(heads: int, length: int, interpret: bool):
    block = next(size for size in (BLOCK, BLOCK // 2, LANES) if length % size == 0)
    names = (
        "block_q",
        "block_kv",
        "block_q_dkv",
        "block_kv_dkv",
        "block_q_dq",
        "block_kv_dq",
    )
    sizes = kernel.BlockSizes(**dict.fromkeys(names, block))
    mask = masks.MultiHeadMask([masks.CausalMask((length, length))] * heads)
    return kernel.make_splash_mha_single_device(
        mask, block_sizes=sizes, interpret=interpret, residual_checkpoint_name=PRODUCT
    )
