"""What does one block do? Two residual branches behind norms, and the statistics of what they add.

B batch, T positions, D width.
"""

from flax import linen as nn

from sparsecod_jax.config import AttentionKernel, Model
from sparsecod_jax.model.attention import Attention
from sparsecod_jax.model.layers import RMSNorm, SwiGLU
from sparsecod_jax.model.moe import MixtureOfExperts
from sparsecod_jax.sharding import constrain
from sparsecod_jax.stats.taps import block_stats


class Block(nn.Module):
    """A Pre-LN block: x + attention(norm(x)), then u + ffn(norm(u)).

    `norm_scale` multiplies both norm outputs: 1 in plain Pre-LN, 1/sqrt(l) under LayerNorm Scaling.
    """

    cfg: Model
    attention: AttentionKernel
    with_moments: bool

    @nn.compact
    def __call__(self, x_BTD, norm_scale, angles, segments_BT):
        cfg = self.cfg
        scale = norm_scale.astype(cfg.compute_dtype)
        normed_BTD = RMSNorm(cfg, name="attention_norm")(x_BTD) * scale
        attention_BTD = Attention(cfg, self.attention, name="attention")(normed_BTD, angles, segments_BT)
        u_BTD = self._add(x_BTD, attention_BTD)
        ffn_BTD, router_stats = self._ffn(RMSNorm(cfg, name="ffn_norm")(u_BTD) * scale)
        y_BTD = self._add(u_BTD, ffn_BTD)
        return y_BTD, block_stats(x_BTD, attention_BTD, ffn_BTD, y_BTD, with_moments=self.with_moments) | router_stats

    def _ffn(self, x_BTD):
        if self.cfg.n_experts:
            return MixtureOfExperts(self.cfg, name="ffn")(x_BTD)
        return SwiGLU(self.cfg, self.cfg.d_ff, name="ffn")(x_BTD), {}

    def _add(self, stream_BTD, branch_BTD):
        return constrain(stream_BTD + branch_BTD.astype(self.cfg.residual_dtype), "batch", "length", "width")
