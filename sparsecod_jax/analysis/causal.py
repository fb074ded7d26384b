"""Do later blocks depend on an earlier one?

Causal effect: block s is skipped, and the change of each later block's update is measured.
Sources: arXiv 2603.15389, `compute_layer_score.py --compute_causal` of its released code;
for the effect on future tokens alone Csordas et al., arXiv 2505.13898.

N sequences, B rows, T positions, D width, L blocks, S the skipped block, P pairs s < l,
R resamplings of the sequences.
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

CUTS = 4  # positions in a sequence at which the past ends
MARGIN = 8  # positions that a past has at least

# From rows, states and s to the residual stream after block s.
Intervention = Callable[[Rows, jax.Array, int], jax.Array]


def causal(subject: Subject, tokens_NT: np.ndarray, seed: int) -> dict[str, Any]:
    """Relative change of the update of block l when block s is skipped, without unit.

    The mean over tokens of |update of l without s - update of l|, over the mean over tokens
    of |update of l|.

    Args:
      seed: of the cuts between past and future tokens.

    Returns:
      `matrix[s][l]`, [L][L], 0 where l <= s; `score`, the mean over all s < l, and `ci95`,
      its interval over sequences; `score_all`, the mean over the whole matrix, zeros
      included; `score_rows`, the mean of the means of its rows. The same in `attention` and
      `ffn`, where only that branch is skipped, and in `future`: there block s is skipped
      for the tokens before a cut, the first one excepted, and tokens from the cut on are
      measured, over CUTS cuts. Csordas et al. take maxima where means are taken here, so
      that `future` compares with `matrix`.
    """
    net, params = subject.net, subject.params
    everywhere_T = np.ones(tokens_NT.shape[1], np.float32)

    def skip_attention(rows, states_LBTD, number):
        return network.with_ffn(net, params, states_LBTD[number], number)

    def skip_ffn(rows, states_LBTD, number):
        return network.with_attention(
            net, params, states_LBTD[number], number, rows.segments
        )

    # A block whose attention is skipped still has its FFN, and the reverse.
    def summary(intervene):
        return _summary(*effects(subject, tokens_NT, intervene, everywhere_T))

    return {
        **summary(skip),
        "attention": summary(skip_attention),
        "ffn": summary(skip_ffn),
        "future": _future(subject, tokens_NT, seed),
    }


def skip(rows: Rows, states_LBTD: jax.Array, number: int) -> jax.Array:
    """The residual stream after a block that is skipped: the block's input."""
    return states_LBTD[number]


def _future(subject: Subject, tokens_NT: np.ndarray, seed: int) -> dict[str, Any]:
    """The effect of past tokens on future ones, which attention alone can pass on.

    Sums over all cuts enter the ratios, so that a cut counts by its future tokens.
    """
    length = tokens_NT.shape[1]
    cuts = _draw_cuts(length, seed)
    position_T = np.arange(length)
    by_cut = []
    for cut in cuts:
        # The first token keeps its block: many heads attend to it whatever it is.
        past_T = (position_T > 0) & (position_T < cut)
        future_T = (position_T >= cut).astype(np.float32)
        skip_in_past = partial(_skip_at, past_T)
        by_cut.append(effects(subject, tokens_NT, skip_in_past, future_T))
    changed_SLN = np.sum([changed for changed, _ in by_cut], axis=0)
    intact_LN = np.sum([intact for _, intact in by_cut], axis=0)
    summary = _summary(changed_SLN, intact_LN)
    return {**summary, "cuts": sorted(int(cut) for cut in cuts)}


def _draw_cuts(length: int, seed: int) -> np.ndarray:
    """Positions at which the past ends, some distance from either end."""
    margin = min(MARGIN, length // 3)
    candidates = np.arange(margin, length - margin + 1)
    rng = np.random.default_rng(seed)
    return rng.choice(candidates, min(CUTS, len(candidates)), replace=False)


def _skip_at(past_T, rows: Rows, states_LBTD: jax.Array, number: int) -> jax.Array:
    """Skips a block for the tokens at some positions."""
    return jnp.where(
        past_T[None, :, None], states_LBTD[number], states_LBTD[number + 1]
    )


def effects(
    subject: Subject,
    tokens_NT: np.ndarray,
    intervene: Intervention,
    measured_T: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """How much an intervention at block s changes each later update, and the updates' size.

    Args:
      measured_T: 1 at the positions that are measured, 0 at the others.

    Returns:
      Sums over the measured tokens of each sequence of |update without s - update|,
      [S, L, N], and of |update|, [L, N]; in the unit of the residual stream.
    """
    net, params = subject.net, subject.params

    def measure(rows, states_LBTD):
        changes_SLB = []
        for number in subject.blocks("causal"):
            x_BTD = intervene(rows, states_LBTD, number)
            changes_LB = _changes(
                net,
                params,
                states_LBTD,
                x_BTD,
                number + 1,
                measured_T,
                rows.segments,
            )
            changes_SLB.append(np.asarray(changes_LB))
        return np.array([*changes_SLB, _sizes(states_LBTD, measured_T)])

    measured = per_sequence(subject, tokens_NT, measure)  # [S + 1, L, N]
    return measured[:-1], measured[-1]


@partial(jax.jit, static_argnums=0)
def _changes(net, params, states_LBTD, x_BTD, first, measured_T, segments_BT):
    """How much the update of each block from `first` on differs from the intact one.

    Args:
      x_BTD: what block `first` gets instead of its intact input.

    Returns:
      [L, B], zeros for the blocks before `first`.
    """

    def step(position, carry):
        x_BTD, changes_LB = carry
        block = network.BlockAt(net, params, position, position)
        y_BTD = block.output(x_BTD, segments_BT)
        # Updates are compared, as all outputs lack what the skipped block would have added.
        intact_BTD = states_LBTD[position + 1] - states_LBTD[position]
        change_B = _total_norm(y_BTD - x_BTD - intact_BTD, measured_T)
        return y_BTD, changes_LB.at[position].set(change_B)

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
    """The matrix and its means, from sums of each sequence; see `causal`."""
    layers, sequences = intact_LN.shape
    earlier_P, later_P = np.triu_indices(layers, 1)
    changed_PN, intact_PN = changed_SLN[earlier_P, later_P], intact_LN[later_P]

    # Sums over sequences are taken before the ratio, so that tokens count alike.
    def entries(weights_RN):
        """The matrix entries with s < l under weights of the sequences, [R, P]."""
        intact_RP = weights_RN @ intact_PN.T
        changed_RP = weights_RN @ changed_PN.T
        # A block without any update has no effect to lose.
        zeros_RP = np.zeros_like(intact_RP)
        return np.divide(changed_RP, intact_RP, out=zeros_RP, where=intact_RP > 0)

    matrix_SL = np.zeros((layers, layers))
    matrix_SL[earlier_P, later_P] = entries(np.full((1, sequences), 1 / sequences))[0]
    if layers == 1:
        return {"matrix": matrix_SL.tolist(), "score": None}  # there is no later block
    row_means = [matrix_SL[s, s + 1 :].mean() for s in range(layers - 1)]
    return {
        "matrix": matrix_SL.tolist(),
        "score": float(matrix_SL[earlier_P, later_P].mean()),
        "ci95": interval(lambda weights: entries(weights).mean(axis=1), sequences),
        "score_all": float(matrix_SL.mean()),
        "score_rows": float(np.mean(row_means)),
    }
