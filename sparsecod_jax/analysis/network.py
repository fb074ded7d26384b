"""What does the network compute when blocks are skipped, swapped or replaced?

Interventions: blocks are data, so every function here is compiled once per shape, whatever
the block. Each starts at any depth with a loop whose start is an argument, so that what lies
before an intervention is not computed again.

B rows, T positions, D width, L blocks; attention: H heads, J heads of keys and values, K
width of a head; F hidden width of the FFN, E experts. States are the residual stream before
the first block and after every block, [L + 1, B, T, D].
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from sparsecod_jax.model.attention import Kernel, rope_angles
from sparsecod_jax.model.block import Block, depths
from sparsecod_jax.model.transformer import Transformer
from sparsecod_jax.parallel.sharding import constrain


class BlockAt:
    """One block of a network, at any depth.

    The numbers that choose it may be traced.
    """

    def __init__(
        self,
        net: Transformer,
        params: Any,
        number,
        position,
        kernel: Kernel | None = None,
        silent=None,
    ):
        """Takes the parameters of one block out of those of all.

        Args:
          number: of the block whose parameters these are.
          position: the depth that the block lies at, which LayerNorm Scaling depends on.
          kernel: of attention; None is the network's own.
          silent: the number of an expert whose output is set to zero.
        """

        def at_number(leaf):
            return jax.lax.dynamic_index_in_dim(leaf, number, keepdims=False)

        self._block = Block(net.cfg, kernel or net.kernels.attention)
        self._params = jax.tree.map(at_number, params["blocks"])
        # An expert adds what its last matrix makes.
        if silent is not None:
            ffn = self._params["ffn"]
            self._params |= {"ffn": ffn | {"down": ffn["down"].at[silent].set(0)}}
        self._depth = jax.tree.map(lambda leaf_L: leaf_L[position], depths(net.cfg))

    def output(self, x_BTD, segments_BT):
        """The residual stream after the block, [B, T, D]."""
        angles = self._angles(x_BTD)
        y_BTD, _ = self._call("__call__", x_BTD, self._depth, angles, segments_BT)
        return y_BTD

    def with_attention(self, x_BTD, segments_BT):
        """The residual stream with the attention branch added, [B, T, D]."""
        angles = self._angles(x_BTD)
        branch_BTD = self._call(
            "attention_branch", x_BTD, self._depth, angles, segments_BT
        )
        return self._call("add", x_BTD, branch_BTD)

    def with_ffn(self, u_BTD):
        """The residual stream with the FFN branch added, [B, T, D]."""
        branch_BTD, _ = self._call("ffn_branch", u_BTD, self._depth)
        return self._call("add", u_BTD, branch_BTD)

    def queries_keys_values(self, x_BTD):
        """As attention compares and mixes them: [B, T, H, K] and twice [B, T, J, K]."""
        angles = self._angles(x_BTD)
        return self._call("queries_keys_values", x_BTD, self._depth, angles)

    def activations(self, u_BTD):
        """The hidden layer of a dense FFN, [B, T, F]."""
        return self._call("activations", u_BTD, self._depth)

    def routing(self, u_BTD) -> dict[str, jax.Array]:
        """The statistics of a router over all tokens, scalars and counts [E]."""
        _, stats = self._call("ffn_branch", u_BTD, self._depth)
        return stats

    def _angles(self, x_BTD):
        cfg = self._block.cfg
        return rope_angles(x_BTD.shape[1], cfg.head_dim, cfg.rope_theta)

    def _call(self, method: str, *args) -> Any:
        return self._block.apply({"params": self._params}, *args, method=method)


@partial(jax.jit, static_argnums=0)
def states(net: Transformer, params, tokens_BT, segments_BT) -> jax.Array:
    """The residual stream before the first block and after every block, [L + 1, B, T, D]."""

    def step(x_BTD, number):
        y_BTD = BlockAt(net, params, number, number).output(x_BTD, segments_BT)
        return y_BTD, y_BTD

    x_BTD: Any = net.apply({"params": params}, tokens_BT, method="embed")
    _, outputs_LBTD = jax.lax.scan(step, x_BTD, jnp.arange(net.cfg.n_layers))
    all_states = jnp.concatenate([x_BTD[None], outputs_LBTD])
    return constrain(all_states, None, "batch", "length", "width")


def run(net: Transformer, params, x_BTD, first, order_L, segments_BT) -> jax.Array:
    """The last block's output, [B, T, D].

    Args:
      x_BTD: the input of the block at depth `first`.
      order_L: the number of the block at each depth.
    """

    def step(position, x_BTD):
        block = BlockAt(net, params, order_L[position], position)
        return block.output(x_BTD, segments_BT)

    return jax.lax.fori_loop(first, net.cfg.n_layers, step, x_BTD)


def losses(net: Transformer, params, x_BTD, tokens_BT) -> jax.Array:
    """Mean cross-entropy of each row's T - 1 predictions, [B], nats per token.

    Args:
      x_BTD: the last block's output.
    """
    losses_BT: Any = net.apply(
        {"params": params}, x_BTD, tokens_BT, method="losses_from"
    )
    return losses_BT.sum(axis=1) / (tokens_BT.shape[1] - 1)


@partial(jax.jit, static_argnums=0)
def tail_losses(net: Transformer, params, x_BTD, first, rows) -> jax.Array:
    """The losses, [B], when the block at depth `first` gets `x_BTD`; nats per token.

    With first = L, `x_BTD` is the last block's output.
    """
    order_L = jnp.arange(net.cfg.n_layers)
    y_BTD = run(net, params, x_BTD, first, order_L, rows.segments)
    return losses(net, params, y_BTD, rows.tokens)


@partial(jax.jit, static_argnums=0)
def with_attention(net: Transformer, params, x_BTD, number, segments_BT) -> jax.Array:
    """The residual stream after block `number` without its FFN, [B, T, D]."""
    return BlockAt(net, params, number, number).with_attention(x_BTD, segments_BT)


@partial(jax.jit, static_argnums=0)
def with_ffn(net: Transformer, params, x_BTD, number) -> jax.Array:
    """The residual stream after block `number` without its attention, [B, T, D]."""
    return BlockAt(net, params, number, number).with_ffn(x_BTD)
