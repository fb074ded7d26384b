"""What does the stream look like at each depth? Variance, moments, the size and direction of updates, and what could be predicted there.

Sources: block influence, ShortGPT (arXiv 2403.03853); logit lens, and relative sizes of updates, Csordas et al. (arXiv 2505.13898).

N sequences, B rows, T positions, D width, V vocabulary, L blocks.
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
    """Means over sequences of statistics of each, one value a block.

    `variance/...` are as in metrics.jsonl; `moments/residual/...` are those of each sequence alone, averaged. `block_influence` is 1 -
    cos(input, output), `relative_update/block` the norm of the update over that of the input, likewise `attention` and `ffn`, means over
    tokens. `lens_divergence` is KL(prediction decoded after the block || final prediction) in nats, `lens_overlap` the share of the final
    TOP predictions among the TOP decoded there.
    """
    net, params = subject.net, subject.params
    names: list[str] = []

    def measure(rows, states_LBTD):
        lens = jax.device_get(_lens(net, params, states_LBTD))
        found = []
        for number in subject.blocks("profile"):
            pair = states_LBTD[number], states_LBTD[number + 1]
            measured = jax.device_get(
                _measured(net, params, *pair, number, rows.segments)
            )
            found.append(
                measured | {name: values[number] for name, values in lens.items()}
            )
        names[:] = sorted(found[0])
        return np.array([[each[name] for name in names] for each in found])

    means_LS = per_sequence(subject, tokens_NT, measure).mean(axis=-1)
    return {name: means_LS[:, place].tolist() for place, name in enumerate(names)}


def residual_variance(subject: Subject, tokens_NT: np.ndarray) -> np.ndarray:
    """`variance/residual` alone, [L]."""
    return per_sequence(
        subject,
        tokens_NT,
        lambda _, states_LBTD: jax.vmap(partial(_rows, variance))(states_LBTD[1:]),
    ).mean(axis=-1)


@partial(jax.jit, static_argnums=0)
def _measured(net, params, x_BTD, y_BTD, number, segments_BT):
    """Statistics of a block's input and output, [B] each."""
    u_BTD = network.BlockAt(net, params, number, number).with_attention(
        x_BTD, segments_BT
    )
    attention_BTD, ffn_BTD, update_BTD = u_BTD - x_BTD, y_BTD - u_BTD, y_BTD - x_BTD
    return {
        "variance/residual": _rows(variance, y_BTD),
        "variance/attention": _rows(variance, attention_BTD),
        "variance/ffn": _rows(variance, ffn_BTD),
        "norm/residual": _rows(branch_norm, y_BTD),
        "cosine/update": _rows(update_cosine, x_BTD, y_BTD),
        "block_influence": _rows(_influence, x_BTD, y_BTD),
        "relative_update/block": _rows(_relative_norm, update_BTD, x_BTD),
        "relative_update/attention": _rows(_relative_norm, attention_BTD, x_BTD),
        "relative_update/ffn": _rows(_relative_norm, ffn_BTD, u_BTD),
        **{
            f"moments/residual/{name}": value
            for name, value in _rows(moments, y_BTD).items()
        },
    }


def _rows(statistic, *arrays) -> Any:
    """A statistic of a batch, of each row."""
    return jax.vmap(lambda *rows: statistic(*(row[None] for row in rows)))(*arrays)


def _influence(x_BTD, y_BTD):
    lengths_BT = jnp.linalg.norm(x_BTD, axis=-1) * jnp.linalg.norm(y_BTD, axis=-1)
    return 1 - jnp.mean(jnp.sum(x_BTD * y_BTD, axis=-1) / lengths_BT)


def _relative_norm(update_BTD, x_BTD):
    return jnp.mean(
        jnp.linalg.norm(update_BTD, axis=-1) / jnp.linalg.norm(x_BTD, axis=-1)
    )


@partial(jax.jit, static_argnums=0)
def _lens(net, params, states_LBTD):
    """What the head would predict from the stream after each block, against what it predicts from the last, [L, B] each."""

    def decoded(x_BD):
        h_BTD: Any = RMSNorm(net.cfg).apply(
            {"params": params["final_norm"]}, x_BD[:, None]
        )
        return jax.nn.log_softmax(
            net.apply({"params": params}, h_BTD, method="logits")[:, 0]
        )

    def position(x_LBD):
        final_BV = decoded(x_LBD[-1])
        final_best_BK = jax.lax.top_k(final_BV, TOP)[1]

        def block(x_BD):
            here_BV = decoded(x_BD)
            shared_BKK = (
                jax.lax.top_k(here_BV, TOP)[1][:, :, None] == final_best_BK[:, None, :]
            )
            return jnp.sum(
                jnp.exp(here_BV) * (here_BV - final_BV), axis=-1
            ), shared_BKK.sum(axis=(1, 2)) / TOP

        return jax.lax.map(block, x_LBD)

    divergence_TLB, overlap_TLB = jax.lax.map(
        position, jnp.moveaxis(states_LBTD[1:], 2, 0), batch_size=LENS_POSITIONS
    )
    return {
        "lens_divergence": divergence_TLB.mean(axis=0),
        "lens_overlap": overlap_TLB.mean(axis=0),
    }
