"""What is the whole network? Embedding, one block scanned over depth, final norm, untied head.

Transformer: its logits, its hidden states, and every loss that pairs them with its head.

B batch, T positions, C chosen positions, D width, V vocabulary, L blocks.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from sparsecod_jax.config import Kernels, Model
from sparsecod_jax.model.attention import rope_angles
from sparsecod_jax.model.block import Block, depths
from sparsecod_jax.model.layers import PRODUCT, RMSNorm, weight
from sparsecod_jax.model.loss import (
    cross_entropy,
    losses_and_hits,
    token_losses,
    windows,
)
from sparsecod_jax.parallel.sharding import constrain
from sparsecod_jax.stats.block import variance

# At every width, so that every width starts from the published variance profile.
EMBEDDING_STD = 0.02


def _is_product(primitive, *args, **params) -> bool:
    """Whether a remat policy that keeps matrix products keeps this."""
    # Attention by cuDNN is one primitive, made of matrix products.
    if primitive.name.startswith("dot_product_attention_fwd"):
        return True
    keeps = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return keeps(primitive, *args, **params)


REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        _is_product, jax.checkpoint_policies.save_only_these_names(PRODUCT)
    ),
}


class Transformer(nn.Module):
    """A Pre-LN decoder.

    Its blocks are stored stacked, [L, ...], and applied by one scan, or one by one if
    `kernels` unrolls it.
    """

    cfg: Model
    kernels: Kernels = Kernels()
    with_moments: bool = False

    def setup(self):
        cfg = self.cfg
        self.embedding = weight(
            self,
            "embedding",
            (cfg.vocab_size, cfg.d_model),
            ("layers", "table"),
            EMBEDDING_STD,
        )
        self.blocks = self._scanned_block()(
            cfg, self.kernels.attention, self.with_moments
        )
        self.final_norm = RMSNorm(cfg)
        self.head = weight(
            self,
            "head",
            (cfg.d_model, cfg.vocab_size),
            ("embed", "vocab"),
            cfg.init_std,
        )

    def _scanned_block(self):
        """The class of the stacked blocks: a scan over one block, rematerialised or not."""
        remat, layers = self.kernels.remat, self.cfg.n_layers
        # The moments sort, and sorts take minutes to compile for each block.
        unroll = self.kernels.unroll and not self.with_moments
        block = Block
        if remat != "none":
            # Without a loop the compiler may replace what the backward pass computes again
            # by what the forward pass has computed (CSE). Under `full` it must not. Under
            # `dots` it may, as forbidding it costs copies of the parameters.
            block = nn.remat(
                Block,
                policy=REMAT_POLICIES[remat],
                prevent_cse=unroll and remat == "full",
            )
        return nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast),  # pyright: ignore[reportArgumentType]
            length=layers,
            unroll=layers if unroll else 1,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )

    def embed(self, tokens_BT):
        """The residual stream before the first block, [B, T, D]."""
        table_VD = self.embedding.astype(self.cfg.residual_dtype)
        table_VD = constrain(table_VD, None, "table_width")
        return constrain(table_VD[tokens_BT], "batch", "length", "width")

    def hidden(self, tokens_BT, segments_BT=None):
        """The residual stream after the final norm, [B, T, D], and the statistics.

        The statistics of blocks are [L] each, the others scalars.
        """
        cfg = self.cfg
        angles = rope_angles(tokens_BT.shape[1], cfg.head_dim, cfg.rope_theta)
        x_BTD = self.embed(tokens_BT)
        x_BTD, stats = self.blocks(x_BTD, depths(cfg), angles, segments_BT)
        h_BTD = self.final_norm(x_BTD)
        final_variance = variance(jax.lax.stop_gradient(h_BTD))
        return h_BTD, stats | {"variance/final_norm": final_variance}

    def logits(self, h_BTD):
        """Scores of the next token in at least float32, [B, T, V]."""
        wide = jnp.promote_types(h_BTD.dtype, jnp.float32)
        head_DV = self.head.astype(h_BTD.dtype)
        logits_BTV = jnp.einsum(
            "btd,dv->btv", h_BTD, head_DV, preferred_element_type=wide
        )
        return constrain(logits_BTV, "batch", "length", "vocab")

    def __call__(self, tokens_BT, segments_BT=None):
        """Logits, [B, T, V], and statistics.

        Args:
          tokens_BT: token ids.
          segments_BT: attention stays within equal numbers.
        """
        h_BTD, stats = self.hidden(tokens_BT, segments_BT)
        return self.logits(h_BTD), stats

    def loss(self, tokens_BT1, segments_BT=None, weights_BT=None):
        """The summed loss of predicting each token from those before it, and statistics.

        Args:
          tokens_BT1: windows of T + 1 token ids.
          segments_BT: attention stays within equal numbers.
          weights_BT: of the predictions; all 1 if None.

        Returns:
          The sum of weight times cross-entropy, nats, and the statistics of `hidden`.
        """
        inputs_BT, targets_BT = windows(tokens_BT1)
        h_BTD, stats = self.hidden(inputs_BT, segments_BT)
        if weights_BT is None:
            weights_BT = jnp.ones(targets_BT.shape)
        return cross_entropy(h_BTD, self.head, targets_BT, weights_BT), stats

    def losses_from(self, x_BTD, tokens_BT):
        """The loss of predicting each next token from the last block's output, [B, T], nats.

        0 at the last position, which has no next token. Like `token_losses` not to be
        differentiated.
        """
        h_BTD = self.final_norm(x_BTD)
        targets_BT = jnp.roll(tokens_BT, -1, axis=1)
        weights_BT = jnp.ones(tokens_BT.shape, h_BTD.dtype).at[:, -1].set(0)
        return token_losses(h_BTD, self.head, targets_BT, weights_BT)

    def losses_and_hits_at(self, tokens_BT, positions_BC, targets_BC):
        """Losses in nats and hits of chosen predictions, [B, C] each.

        Args:
          tokens_BT: token ids.
          positions_BC: after which the predicted ids come.
          targets_BC: the predicted ids.
        """
        h_BTD, _ = self.hidden(tokens_BT)
        h_BCD = jnp.take_along_axis(h_BTD, positions_BC[..., None], axis=1)
        h_BCD = constrain(h_BCD, "batch", "length", "width")
        return losses_and_hits(h_BCD, self.head, targets_BC)
