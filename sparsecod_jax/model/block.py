"""What does one block do?

Pre-LN block: two residual branches behind norms, and the statistics of what they add.

B batch, T positions, D width, L blocks; attention: H heads, J key/value heads, K head size;
F hidden width of the FFN.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from sparsecod_jax.config import AttentionKernel, Model
from sparsecod_jax.model.attention import Attention, Kernel
from sparsecod_jax.model.layers import RMSNorm, SwiGLU
from sparsecod_jax.model.moe import MixtureOfExperts
from sparsecod_jax.parallel.sharding import constrain
from sparsecod_jax.stats.block import block_stats


class Depth(NamedTuple):
    """What a block takes from its depth l, counted from 1.

    Attributes:
      norm_scale: multiplies both norm outputs: 1, or 1/sqrt(l) by LayerNorm Scaling. A
        scalar for one block, [L] for all.
    """

    norm_scale: jax.Array


def depths(cfg: Model) -> Depth:
    """The depth of every block, [L]."""
    number_L = jnp.arange(1, cfg.n_layers + 1)
    if cfg.layer_norm_scaling:
        return Depth(norm_scale=jax.lax.rsqrt(number_L * 1.0))
    return Depth(norm_scale=jnp.ones(cfg.n_layers))


class Block(nn.Module):
    """A Pre-LN block: x + attention(norm(x)), then u + ffn(norm(u))."""

    cfg: Model
    kernel: AttentionKernel | Kernel
    with_moments: bool = False

    def setup(self):
        cfg = self.cfg
        self.attention_norm = RMSNorm(cfg)
        self.attention = Attention(cfg, self.kernel)
        self.ffn_norm = RMSNorm(cfg)
        if cfg.n_experts:
            self.ffn = MixtureOfExperts(cfg)
        else:
            self.ffn = SwiGLU(cfg, cfg.d_ff)

    def __call__(self, x_BTD, depth, angles, segments_BT):
        """The residual stream after the block, [B, T, D], and the block's statistics.

        Args:
          x_BTD: the residual stream before the block.
          depth: of the block, a `Depth` of scalars.
          angles: of the rotary positions, [T, K/2].
          segments_BT: attention stays within equal numbers; None for no segments.
        """
        attention_BTD = self.attention_branch(x_BTD, depth, angles, segments_BT)
        u_BTD = self.add(x_BTD, attention_BTD)
        ffn_BTD, router_stats = self.ffn_branch(u_BTD, depth)
        y_BTD = self.add(u_BTD, ffn_BTD)
        stats = block_stats(
            x_BTD, attention_BTD, ffn_BTD, y_BTD, with_moments=self.with_moments
        )
        return y_BTD, stats | router_stats

    def attention_branch(self, x_BTD, depth, angles, segments_BT):
        """What attention adds to the residual stream, [B, T, D]."""
        normed_BTD = self._scaled(self.attention_norm(x_BTD), depth)
        return self.attention(normed_BTD, angles, segments_BT)

    def ffn_branch(self, u_BTD, depth):
        """What the FFN adds to the residual stream, [B, T, D], and a router's statistics."""
        normed_BTD = self._scaled(self.ffn_norm(u_BTD), depth)
        if self.cfg.n_experts:
            return self.ffn(normed_BTD)
        ffn_BTD: Any = self.ffn(normed_BTD)
        return self.cfg.ffn_scale * ffn_BTD, {}

    def queries_keys_values(self, x_BTD, depth, angles):
        """What attention compares and mixes: [B, T, H, K], and twice [B, T, J, K].

        Queries and keys are rotated.
        """
        normed_BTD = self._scaled(self.attention_norm(x_BTD), depth)
        return self.attention.project(normed_BTD, angles)

    def activations(self, u_BTD, depth):
        """The hidden layer of a dense FFN, [B, T, F]."""
        return self.ffn.activate(self._scaled(self.ffn_norm(u_BTD), depth))

    def add(self, residual_BTD, branch_BTD):
        """The residual stream with a branch added, in the residual stream's own dtype."""
        sum_BTD = residual_BTD + branch_BTD.astype(self.cfg.residual_dtype)
        return constrain(sum_BTD, "batch", "length", "width")

    def _scaled(self, normed_BTD, depth):
        return normed_BTD * depth.norm_scale.astype(self.cfg.compute_dtype)
