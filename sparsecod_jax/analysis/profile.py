"""What does the residual stream look like at each depth?

Depth profile: variance, moments, the size and direction of updates, and what could be
predicted at each depth. Sources: block influence, ShortGPT (arXiv 2403.03853); logit lens
and relative sizes of updates, Csordas et al. (arXiv 2505.13898).

N sequences, B rows, T positions, D width, V vocabulary, L blocks, K best predictions, M
measures.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsecod_jax.analysis import network
from sparsecod_jax.analysis.subject import Subject, per_sequence
from sparsecod_jax.model.layers import RMSNorm
from sparsecod_jax.stats.block import branch_norm, update_cosine, variance
from sparsecod_jax.stats.moments import moments

TOP = 5  # predictions whose overlap is counted
LENS_POSITIONS = 16  # decoded at once


def profile(subject: Subject, tokens_NT: np.ndarray) -> dict[str, list[float]]:
    """Statistics of each block, [L] each, means over sequences.

    Returns:
      `variance/...`, `norm/...` and `cosine/update` as in metrics.jsonl, in the unit of the
      residual stream (variance: squared); `moments/residual/...`, those of each sequence
      alone, averaged. `block_influence`, 1 - cos(input, output), and
      `relative_update/block`, the norm of the update over that of the input, likewise
      `attention` and `ffn`: means over tokens, without unit. `lens_divergence`,
      KL(prediction decoded after the block || final prediction) in nats, and
      `lens_overlap`, the share of the final TOP predictions among the TOP decoded there.
    """
    net, params = subject.net, subject.params
    names: list[str] = []

    def measure(rows, states_LBTD):
        lens = jax.device_get(_lens(net, params, states_LBTD))
        by_block = []
        for number in subject.blocks("profile"):
            x_BTD, y_BTD = states_LBTD[number], states_LBTD[number + 1]
            measured = jax.device_get(
                _measures(net, params, x_BTD, y_BTD, number, rows.segments)
            )
            for name, values_LB in lens.items():
                measured[name] = values_LB[number]
            by_block.append(measured)
        # Names only become known here; they are the same for all batches.
        names[:] = sorted(by_block[0])
        return np.array([[block[name] for name in names] for block in by_block])

    means_LM = per_sequence(subject, tokens_NT, measure).mean(axis=-1)
    return dict(zip(names, means_LM.T.tolist(), strict=True))


def residual_variance(subject: Subject, tokens_NT: np.ndarray) -> np.ndarray:
    """`variance/residual` alone, [L]."""

    def measure(rows, states_LBTD):
        return jax.vmap(partial(_per_row, variance))(states_LBTD[1:])

    return per_sequence(subject, tokens_NT, measure).mean(axis=-1)


@partial(jax.jit, static_argnums=0)
def _measures(net, params, x_BTD, y_BTD, number, segments_BT):
    """Statistics of a block's input and output, [B] each.

    Args:
      x_BTD: the input of block `number`.
      y_BTD: its output.
    """
    # Between the two branches, as after attention alone.
    block = network.BlockAt(net, params, number, number)
    u_BTD = block.with_attention(x_BTD, segments_BT)
    attention_BTD = u_BTD - x_BTD
    ffn_BTD = y_BTD - u_BTD
    update_BTD = y_BTD - x_BTD
    measures = {
        "variance/residual": _per_row(variance, y_BTD),
        "variance/attention": _per_row(variance, attention_BTD),
        "variance/ffn": _per_row(variance, ffn_BTD),
        "norm/residual": _per_row(branch_norm, y_BTD),
        "cosine/update": _per_row(update_cosine, x_BTD, y_BTD),
        "block_influence": _per_row(_influence, x_BTD, y_BTD),
        "relative_update/block": _per_row(_relative_norm, update_BTD, x_BTD),
        "relative_update/attention": _per_row(_relative_norm, attention_BTD, x_BTD),
        "relative_update/ffn": _per_row(_relative_norm, ffn_BTD, u_BTD),
    }
    for name, value_B in _per_row(moments, y_BTD).items():
        measures[f"moments/residual/{name}"] = value_B
    return measures


def _per_row(statistic, *arrays) -> Any:
    """A statistic that is defined for a batch, of each of its rows."""

    def of_one(*rows):
        return statistic(*(row[None] for row in rows))

    return jax.vmap(of_one)(*arrays)


def _influence(x_BTD, y_BTD):
    """Mean over tokens of 1 - cos(input, output), scalar."""
    lengths_BT = jnp.linalg.norm(x_BTD, axis=-1) * jnp.linalg.norm(y_BTD, axis=-1)
    return 1 - jnp.mean(jnp.sum(x_BTD * y_BTD, axis=-1) / lengths_BT)


def _relative_norm(update_BTD, x_BTD):
    """Mean over tokens of |update| / |x|, scalar."""
    update_BT = jnp.linalg.norm(update_BTD, axis=-1)
    return jnp.mean(update_BT / jnp.linalg.norm(x_BTD, axis=-1))


@partial(jax.jit, static_argnums=0)
def _lens(net, params, states_LBTD):
    """The logit lens: predictions decoded after each block, against the final ones.

    Returns:
      Means over positions, [L, B] each.
    """

    def decoded(x_BD):
        """Log-probabilities that final norm and head make of a residual stream, [B, V]."""
        norm = RMSNorm(net.cfg)
        h_BTD: Any = norm.apply({"params": params["final_norm"]}, x_BD[:, None])
        logits_BTV: Any = net.apply({"params": params}, h_BTD, method="logits")
        return jax.nn.log_softmax(logits_BTV[:, 0])

    def best(log_p_BV):
        return jax.lax.top_k(log_p_BV, TOP)[1]

    def position(x_LBD):
        # The last block's prediction is the network's own.
        final_BV = decoded(x_LBD[-1])
        final_best_BK = best(final_BV)

        def block(x_BD):
            here_BV = decoded(x_BD)
            # Every best prediction here against every final one.
            same_BKK = best(here_BV)[:, :, None] == final_best_BK[:, None, :]
            divergence_B = jnp.sum(jnp.exp(here_BV) * (here_BV - final_BV), axis=-1)
            return divergence_B, same_BKK.sum(axis=(1, 2)) / TOP

        return jax.lax.map(block, x_LBD)

    # A few positions at a time, as the logits of all would not fit in memory.
    x_TLBD = jnp.moveaxis(states_LBTD[1:], 2, 0)
    divergence_TLB, overlap_TLB = jax.lax.map(
        position, x_TLBD, batch_size=LENS_POSITIONS
    )
    return {
        "lens_divergence": divergence_TLB.mean(axis=0),
        "lens_overlap": overlap_TLB.mean(axis=0),
    }
