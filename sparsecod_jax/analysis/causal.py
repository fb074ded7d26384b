"""Do later blocks depend on an earlier one? Skips block s and measures how each later block's contribution changes.

Source: arXiv 2603.15389, and for the effect on future tokens alone Csordas et al., arXiv 2505.13898.

N sequences, B rows, T positions, D width, L blocks, S the skipped block.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsecod_jax.analysis import network
from sparsecod_jax.analysis.bootstrap import interval
from sparsecod_jax.analysis.subject import Rows, Subject, per_sequence

CUTS = 4  # places in a sequence at which the past ends
MARGIN = 8  # positions that a past has at least


def causal(subject: Subject, tokens_NT: np.ndarray, seed: int) -> dict[str, Any]:
    """Relative change of the contribution of block l when block s is skipped, `matrix[s][l]`, 0 where l <= s.

    matrix[s][l] = mean over tokens of |update of l without s - update of l| / mean over tokens of |update of l|. `score` is the mean over
    all s < l; `score_all` that over the whole matrix, zeros included; `score_rows` that of the means of its rows. `attention` and `ffn`
    skip only that branch. `future` skips block s for the tokens before a cut, the first one excepted, and measures those from the cut on,
    over CUTS cuts: as Csordas et al. do, with means where they take maxima, so that it compares with `matrix`.
    """
    net, params = subject.net, subject.params
    everywhere_T = np.ones(tokens_NT.shape[1], np.float32)

    def ffn_alone(rows, states_LBTD, number):
        return network.with_ffn(net, params, states_LBTD[number], number)

    def attention_alone(rows, states_LBTD, number):
        return network.with_attention(
            net, params, states_LBTD[number], number, rows.segments
        )

    return {
        **_summary(*effects(subject, tokens_NT, skip, everywhere_T)),
        "attention": _summary(*effects(subject, tokens_NT, ffn_alone, everywhere_T)),
        "ffn": _summary(*effects(subject, tokens_NT, attention_alone, everywhere_T)),
        "future": _future(subject, tokens_NT, seed),
    }


def skip(rows: Rows, states_LBTD: jax.Array, number: int) -> jax.Array:
    """The stream after a block that is skipped."""
    return states_LBTD[number]


def _future(subject: Subject, tokens_NT: np.ndarray, seed: int) -> dict[str, Any]:
    length = tokens_NT.shape[1]
    margin = min(MARGIN, length // 3)
    places = np.arange(margin, length - margin + 1)
    cuts = np.random.default_rng(seed).choice(
        places, min(CUTS, len(places)), replace=False
    )
    place_T = np.arange(length)
    by_cut = []
    for cut in cuts:
        past_T = (place_T > 0) & (place_T < cut)

        def without_past(rows, states_LBTD, number, past_T=past_T):
            return jnp.where(
                past_T[None, :, None], states_LBTD[number], states_LBTD[number + 1]
            )

        by_cut.append(
            effects(
                subject, tokens_NT, without_past, (place_T >= cut).astype(np.float32)
            )
        )
    changed_SLN, intact_LN = (
        np.sum(part, axis=0) for part in zip(*by_cut, strict=True)
    )
    return {
        **_summary(changed_SLN, intact_LN),
        "cuts": sorted(int(cut) for cut in cuts),
    }


def effects(
    subject: Subject, tokens_NT: np.ndarray, intervene: Callable, measured_T: np.ndarray
) -> tuple[Any, Any]:
    """Sums over the measured tokens of each sequence of |update without s - update| and of |update|: [S, L, N] and [L, N].

    Args:
      intervene: from rows, states and s to the stream after block s.
    """
    net, params = subject.net, subject.params

    def measure(rows, states_LBTD):
        changes = []
        for number in subject.blocks("causal"):
            x_BTD = intervene(rows, states_LBTD, number)
            changes.append(
                np.asarray(
                    _changes(
                        net,
                        params,
                        states_LBTD,
                        x_BTD,
                        number + 1,
                        measured_T,
                        rows.segments,
                    )
                )
            )
        return np.array([*changes, _sizes(states_LBTD, measured_T)])

    found = per_sequence(subject, tokens_NT, measure)
    return found[:-1], found[-1]


@partial(jax.jit, static_argnums=0)
def _changes(net, params, states_LBTD, x_BTD, first, measured_T, segments_BT):
    """How much the update of each block from `first` on differs from the intact one, when that block gets `x_BTD`; [L, B]."""

    def step(position, carry):
        x_BTD, changes_LB = carry
        y_BTD = network.BlockAt(net, params, position, position).output(
            x_BTD, segments_BT
        )
        intact_BTD = states_LBTD[position + 1] - states_LBTD[position]
        return y_BTD, changes_LB.at[position].set(
            _total_norm(y_BTD - x_BTD - intact_BTD, measured_T)
        )

    nothing_LB = jnp.zeros((net.cfg.n_layers, len(x_BTD)), x_BTD.dtype)
    return jax.lax.fori_loop(first, net.cfg.n_layers, step, (x_BTD, nothing_LB))[1]


@jax.jit
def _sizes(states_LBTD, measured_T):
    """How large the intact update of each block is, [L, B]."""
    return _total_norm(states_LBTD[1:] - states_LBTD[:-1], measured_T)


def _total_norm(update, measured_T):
    """The L2 norm over the last axis, summed over the measured positions."""
    return jnp.linalg.norm(update, axis=-1) @ measured_T.astype(update.dtype)


def _summary(changed_SLN: np.ndarray, intact_LN: np.ndarray) -> dict[str, Any]:
    layers, sequences = intact_LN.shape
    earlier, later = np.triu_indices(layers, 1)

    def pairs(weights_RN):
        """The matrix entries with s < l, [R, pairs]."""
        sizes = weights_RN @ intact_LN[later].T
        return np.divide(
            weights_RN @ changed_SLN[earlier, later].T,
            sizes,
            out=np.zeros_like(sizes),
            where=sizes > 0,
        )

    matrix = np.zeros((layers, layers))
    matrix[earlier, later] = pairs(np.full((1, sequences), 1 / sequences))[0]
    if layers == 1:
        return {"matrix": matrix.tolist(), "score": None}  # there is no later block
    return {
        "matrix": matrix.tolist(),
        "score": float(matrix[earlier, later].mean()),
        "ci95": interval(lambda weights: pairs(weights).mean(axis=1), sequences),
        "score_all": float(matrix.mean()),
        "score_rows": float(
            np.mean([matrix[s, s + 1 :].mean() for s in range(layers - 1)])
        ),
    }
