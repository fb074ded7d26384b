"""What is the whole network? Embedding, one block scanned over depth, final norm, untied head.

B batch, T positions, D width, V vocabulary, L blocks.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from sparsecod_jax.config import Kernels, Model
from sparsecod_jax.model.attention import rope_angles
from sparsecod_jax.model.block import Block, depths
from sparsecod_jax.model.layers import PRODUCT, RMSNorm, weight
from sparsecod_jax.parallel.sharding import constrain
from sparsecod_jax.stats.block import variance

EMBEDDING_STD = 0.02  # at every width, so that every width starts from the published variance profile


def _is_product(primitive, *args, **params) -> bool:
    """Whether a remat policy that keeps matrix products keeps this: attention by cuDNN is made of them."""
    is_attention = primitive.name.startswith("dot_product_attention_fwd")
    return is_attention or jax.checkpoint_policies.dots_with_no_batch_dims_saveable(
        primitive, *args, **params
    )


REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        _is_product, jax.checkpoint_policies.save_only_these_names(PRODUCT)
    ),
}


class Transformer(nn.Module):
    """A Pre-LN decoder whose blocks are stored stacked, [L, ...], and applied by one scan, or one by one if `kernels` unrolls it."""

    cfg: Model
    kernels: Kernels = Kernels()
    with_moments: bool = False

    def setup(self):
        cfg = self.cfg
        block = Block
        unroll = (
            self.kernels.unroll and not self.with_moments
        )  # whose sorts take minutes to compile for each block
        if self.kernels.remat != "none":
            # Without a loop the compiler takes what forward has computed for what backward computes again. Under `full` it must not. Under
            # `dots` it may, as forbidding it costs copies of the parameters.
            forbid = unroll and self.kernels.remat == "full"
            block = nn.remat(
                Block, policy=REMAT_POLICIES[self.kernels.remat], prevent_cse=forbid
            )
        scanned = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast),  # pyright: ignore[reportArgumentType]
            length=cfg.n_layers,
            unroll=cfg.n_layers if unroll else 1,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        self.embedding = weight(
            self,
            "embedding",
            (cfg.vocab_size, cfg.d_model),
            ("layers", "table"),
            EMBEDDING_STD,
        )
        self.blocks = scanned(cfg, self.kernels.attention, self.with_moments)
        self.final_norm = RMSNorm(cfg)
        self.head = weight(
            self,
            "head",
            (cfg.d_model, cfg.vocab_size),
            ("embed", "vocab"),
            cfg.init_std,
        )

    def embed(self, tokens_BT):
        """The stream before the first block, [B, T, D]."""
        table_VD = constrain(
            self.embedding.astype(self.cfg.residual_dtype), None, "table_width"
        )
        return constrain(table_VD[tokens_BT], "batch", "length", "width")

    def hidden(self, tokens_BT, segments_BT=None):
        """The stream after the final norm, [B, T, D], and the statistics: [L] a block statistic, scalars for the rest."""
        cfg = self.cfg
        angles = rope_angles(tokens_BT.shape[1], cfg.head_dim, cfg.rope_theta)
        x_BTD, stats = self.blocks(
            self.embed(tokens_BT), depths(cfg), angles, segments_BT
        )
        h_BTD = self.final_norm(x_BTD)
        return h_BTD, stats | {
            "variance/final_norm": variance(jax.lax.stop_gradient(h_BTD))
        }

    def logits(self, h_BTD):
        """Scores of the next token in at least float32, [B, T, V]."""
        wide = jnp.promote_types(h_BTD.dtype, jnp.float32)
        logits_BTV = jnp.einsum(
            "btd,dv->btv",
            h_BTD,
            self.head.astype(h_BTD.dtype),
            preferred_element_type=wide,
        )
        return constrain(logits_BTV, "batch", "length", "vocab")

    def __call__(self, tokens_BT, segments_BT=None):
        """Logits [B, T, V] and statistics for token ids [B, T]; `segments_BT` keeps attention within equal ids."""
        h_BTD, stats = self.hidden(tokens_BT, segments_BT)
        return self.logits(h_BTD), stats
