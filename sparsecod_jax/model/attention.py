"""How do positions exchange information?

Attention: causal, grouped-query, with rotary positions.

B batch, T query positions, S key positions, D width, H query heads, J key/value heads,
G = H / J, K head size. Query head h reads key/value head h // G.
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

# From queries, keys, values and segments to the mixed values [B, T, H, K].
Kernel = Callable[..., jax.Array]


def rope_angles(length: int, head_dim: int, theta: float) -> jax.Array:
    """Rotation angles of positions 0..length-1, [T, K/2]: position / theta^(2j/K).

    Rotary position embedding, arXiv 2104.09864.
    """
    frequencies = theta ** (-jnp.arange(0, head_dim, 2) / head_dim)
    return jnp.outer(jnp.arange(length), frequencies)


def rotate(x_BTHK: jax.Array, angles: jax.Array) -> jax.Array:
    """Rotary positions, [B, T, H, K], computed in at least float32.

    The layout is the half-split one: dimension i pairs with i + K/2.
    """
    first, second = jnp.split(at_least_float32(x_BTHK), 2, axis=-1)
    cos, sin = jnp.cos(angles)[None, :, None, :], jnp.sin(angles)[None, :, None, :]
    # Each pair is turned by its angle, as the complex number first + i second.
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(turned, axis=-1).astype(x_BTHK.dtype)


def attend(
    q_BTHK, k_BSJK, v_BSJK, segments_BT, kernel: AttentionKernel | Kernel
) -> jax.Array:
    """Causal softmax attention, [B, T, H, K].

    Args:
      q_BTHK: queries.
      k_BSJK: keys.
      v_BSJK: values.
      segments_BT: attention stays within equal numbers; None for no segments.
      kernel: the name of one, or a function.
    """
    if callable(kernel):
        return kernel(q_BTHK, k_BSJK, v_BSJK, segments_BT)
    if kernel == "splash":
        return splash_attention(q_BTHK, k_BSJK, v_BSJK, segments_BT)
    mask_B1TS = _same_segment(segments_BT)
    if kernel == "reference":
        return reference_attention(q_BTHK, k_BSJK, v_BSJK, mask_B1TS)
    return _by_jax(q_BTHK, k_BSJK, v_BSJK, mask_B1TS, kernel)


def _same_segment(segments_BT) -> jax.Array | None:
    if segments_BT is None:
        return None
    same_BTS = segments_BT[:, :, None] == segments_BT[:, None, :]
    return same_BTS[:, None]


def _by_jax(q_BTHK, k_BSJK, v_BSJK, mask_B1TS, kernel: str) -> jax.Array:
    K = q_BTHK.shape[-1]
    padding = 0
    if kernel == "cudnn":
        # Zeros at the end of every head change no product of a query and a key.
        padding = -K % CUDNN_HEAD_SIZES
    widths = ((0, 0), (0, 0), (0, 0), (0, padding))
    q, k, v = (jnp.pad(z, widths) for z in (q_BTHK, k_BSJK, v_BSJK))
    implementation: Any = kernel  # jax refuses what is neither xla nor cudnn
    mixed = jax.nn.dot_product_attention(
        q,
        k,
        v,
        mask=mask_B1TS,
        is_causal=True,
        scale=K**-0.5,
        implementation=implementation,
    )
    return mixed[..., :K]


def reference_attention(q_BTHK, k_BSJK, v_BSJK, mask_B1TS=None) -> jax.Array:
    """The definition, as plain einsums, [B, T, H, K]; float64 stays float64.

    Args:
      mask_B1TS: True where a key may be read, beside being no later than the query.
    """
    B, T, H, K = q_BTHK.shape
    J = k_BSJK.shape[2]
    q_BTJGK = q_BTHK.reshape(B, T, J, H // J, K)
    wide = jnp.promote_types(q_BTHK.dtype, jnp.float32)
    products_BJGTS = jnp.einsum(
        "btjgk,bsjk->bjgts", q_BTJGK, k_BSJK, preferred_element_type=wide
    )
    logits_BJGTS = products_BJGTS / jnp.sqrt(K)
    allowed = jnp.tril(jnp.ones((T, T), bool))[None, None]
    if mask_B1TS is not None:
        allowed = allowed & mask_B1TS
    masked_BJGTS = jnp.where(allowed[:, :, None], logits_BJGTS, -jnp.inf)
    weights_BJGTS = jax.nn.softmax(masked_BJGTS, axis=-1).astype(v_BSJK.dtype)
    mixed_BTJGK = jnp.einsum("bjgts,bsjk->btjgk", weights_BJGTS, v_BSJK)
    return mixed_BTJGK.reshape(B, T, H, K)


class Attention(nn.Module):
    """Multi-head (J = H), grouped-query or multi-query (J = 1) attention, without biases."""

    cfg: Model
    kernel: AttentionKernel | Kernel

    def setup(self):
        cfg = self.cfg
        D, H, J, K = cfg.d_model, cfg.n_heads, cfg.n_kv_heads, cfg.head_dim
        of_queries = ("embed", "heads", "head_size")
        of_keys = ("embed", "kv_heads", "head_size")
        of_outputs = ("heads", "head_size", "embed")
        self.query = weight(self, "query", (D, H, K), of_queries, cfg.init_std)
        self.key = weight(self, "key", (D, J, K), of_keys, cfg.init_std)
        self.value = weight(self, "value", (D, J, K), of_keys, cfg.init_std)
        self.out = weight(self, "out", (H, K, D), of_outputs, cfg.init_std)

    def __call__(self, x_BTD, angles, segments_BT):
        """What attention adds to the residual stream, [B, T, D]."""
        q_BTHK, k_BTJK, v_BTJK = self.project(x_BTD, angles)
        mixed_BTHK = attend(q_BTHK, k_BTJK, v_BTJK, segments_BT, self.kernel)
        mixed_BTHK = constrain(mixed_BTHK, "batch", "length", "heads", None)
        out_HKD = self.out.astype(self.cfg.compute_dtype)
        return jnp.einsum("bthk,hkd->btd", mixed_BTHK, out_HKD)

    def project(self, x_BTD, angles):
        """Rotated queries and keys, and values: [B, T, H, K], and twice [B, T, J, K]."""
        q_BTHK = rotate(self._projected(x_BTD, self.query, "heads"), angles)
        k_BTJK = rotate(self._projected(x_BTD, self.key, "kv_heads"), angles)
        return q_BTHK, k_BTJK, self._projected(x_BTD, self.value, "kv_heads")

    def _projected(self, x_BTD, weight_DHK, axis: str):
        weight_DHK = weight_DHK.astype(self.cfg.compute_dtype)
        y_BTHK = jnp.einsum("btd,dhk->bthk", x_BTD, weight_DHK)
        return constrain(y_BTHK, "batch", "length", axis, None)
