"""How do positions exchange information? Causal grouped-query attention with rotary positions.

B batch, T query positions, S key positions, D width, H query heads, J key/value heads, G = H / J, K head size.
Query head h reads key/value head h // G.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from sparsecod_jax.config import AttentionKernel, Model
from sparsecod_jax.model.layers import weight
from sparsecod_jax.model.splash import splash_attention
from sparsecod_jax.parallel.sharding import constrain
from sparsecod_jax.tree import at_least_float32

CUDNN_HEAD_SIZES = 8  # cuDNN takes multiples of this

Kernel = Callable[
    ..., jax.Array
]  # from queries, keys, values and segments to the mixed values [B, T, H, K]


def rope_angles(length: int, head_dim: int, theta: float) -> jax.Array:
    """Rotation angles of positions 0..length-1, [T, K/2]: position / theta^(2j/K)."""
    frequencies = theta ** (-jnp.arange(0, head_dim, 2) / head_dim)
    return jnp.outer(jnp.arange(length), frequencies)


def rotate(x_BTHK: jax.Array, angles: jax.Array) -> jax.Array:
    """Rotary positions in the half-split layout (dimension i pairs with i + K/2), in at least float32."""
    first, second = jnp.split(at_least_float32(x_BTHK), 2, axis=-1)
    cos, sin = jnp.cos(angles)[None, :, None, :], jnp.sin(angles)[None, :, None, :]
    return jnp.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
    ).astype(x_BTHK.dtype)


def attend(
    q_BTHK, k_BSJK, v_BSJK, segments_BT, kernel: AttentionKernel | Kernel
) -> jax.Array:
    """Causal softmax attention, within segments where given, by the kernel that is named or given; [B, T, H, K]."""
    if callable(kernel):
        return kernel(q_BTHK, k_BSJK, v_BSJK, segments_BT)
    if kernel == "splash":
        return splash_attention(q_BTHK, k_BSJK, v_BSJK, segments_BT)
    mask = (
        None
        if segments_BT is None
        else (segments_BT[:, :, None] == segments_BT[:, None, :])[:, None]
    )
    if kernel == "reference":
        return reference_attention(q_BTHK, k_BSJK, v_BSJK, mask)
    K = q_BTHK.shape[-1]
    padding = -K % CUDNN_HEAD_SIZES if kernel == "cudnn" else 0
    q, k, v = (
        jnp.pad(z, ((0, 0), (0, 0), (0, 0), (0, padding)))
        for z in (q_BTHK, k_BSJK, v_BSJK)
    )
    implementation: Any = kernel  # jax refuses what is neither xla nor cudnn
    return jax.nn.dot_product_attention(
        q, k, v, mask=mask, is_causal=True, scale=K**-0.5, implementation=implementation
    )[..., :K]


def reference_attention(q_BTHK, k_BSJK, v_BSJK, mask=None) -> jax.Array:
    """The definition, as plain einsums; float64 stays float64. `mask` is [B, 1, T, S], True where a key may be read."""
    B, T, H, K = q_BTHK.shape
    J = k_BSJK.shape[2]
    q_BTJGK = q_BTHK.reshape(B, T, J, H // J, K)
    wide = jnp.promote_types(q_BTHK.dtype, jnp.float32)
    logits_BJGTS = jnp.einsum(
        "btjgk,bsjk->bjgts", q_BTJGK, k_BSJK, preferred_element_type=wide
    ) / jnp.sqrt(K)
    allowed = jnp.tril(jnp.ones((T, T), bool))[None, None]
    allowed = allowed if mask is None else allowed & mask
    weights_BJGTS = jax.nn.softmax(
        jnp.where(allowed[:, :, None], logits_BJGTS, -jnp.inf), axis=-1
    ).astype(v_BSJK.dtype)
    return jnp.einsum("bjgts,bsjk->btjgk", weights_BJGTS, v_BSJK).reshape(B, T, H, K)


class Attention(nn.Module):
    """Multi-head (J = H), grouped-query or multi-query (J = 1) attention, without biases."""

    cfg: Model
    kernel: AttentionKernel | Kernel

    def setup(self):
        cfg = self.cfg
        D, H, J, K = cfg.d_model, cfg.n_heads, cfg.n_kv_heads, cfg.head_dim
        self.query = weight(
            self, "query", (D, H, K), ("embed", "heads", "head_size"), cfg.init_std
        )
        self.key = weight(
            self, "key", (D, J, K), ("embed", "kv_heads", "head_size"), cfg.init_std
        )
        self.value = weight(
            self, "value", (D, J, K), ("embed", "kv_heads", "head_size"), cfg.init_std
        )
        self.out = weight(
            self, "out", (H, K, D), ("heads", "head_size", "embed"), cfg.init_std
        )

    def __call__(self, x_BTD, angles, segments_BT):
        q_BTHK, k_BTJK, v_BTJK = self.project(x_BTD, angles)
        mixed_BTHK = attend(q_BTHK, k_BTJK, v_BTJK, segments_BT, self.kernel)
        mixed_BTHK = constrain(mixed_BTHK, "batch", "length", "heads", None)
        return jnp.einsum(
            "bthk,hkd->btd", mixed_BTHK, self.out.astype(self.cfg.compute_dtype)
        )

    def project(self, x_BTD, angles):
        """Rotated queries and keys, and values: [B, T, H, K], [B, T, J, K], [B, T, J, K]."""

        def projected(kernel_DHK, axis):
            y_BTHK = jnp.einsum(
                "btd,dhk->bthk", x_BTD, kernel_DHK.astype(self.cfg.compute_dtype)
            )
            return constrain(y_BTHK, "batch", "length", axis, None)

        q_BTHK = rotate(projected(self.query, "heads"), angles)
        k_BTJK = rotate(projected(self.key, "kv_heads"), angles)
        return q_BTHK, k_BTJK, projected(self.value, "kv_heads")
