"""Could an affine map of each token do what the block does?

Usefulness: each block is replaced by the map that fits it best, and the loss is measured
again. A ratio of 1 means that the block does no more than such a map. The map is fitted on
one half of the sequences and scored on the other. Source: arXiv 2603.15389,
`compute_usefulness.py` of its released code; docs/design.md describes where that differs.

N sequences, L blocks, D width, A = D + 1 (a one beside each token, for the bias), M tokens
of a batch, R resamplings of the sequences.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from sparsecod_jax.analysis import network
from sparsecod_jax.analysis.bootstrap import interval
from sparsecod_jax.analysis.subject import Subject, per_sequence
from sparsecod_jax.errors import ConfigError

SHARES = (1.02, 1.05, 1.10)  # the last is the published threshold


class AffineMaps(NamedTuple):
    """y = x + x @ update + bias, for each block.

    Attributes:
      condition_L: number of the Gram matrix, within the directions that the tokens reach.
      rank_L: how many directions these are, the bias's included.
    """

    update_LDD: np.ndarray
    bias_LD: np.ndarray
    condition_L: np.ndarray
    rank_L: np.ndarray


def usefulness(subject: Subject, tokens_NT: np.ndarray) -> dict[str, Any]:
    """Loss with a block replaced over loss without, a ratio without unit.

    Returns:
      `loss_ratio` [L]; `score`, the mean of its logarithm; `share_above`, the share of
      blocks above each of SHARES; `ci95`, intervals over sequences. The same in
      `in_sample`, scored where the map was fitted, and in `as_published`, with the
      transposed map that the released code installs, scored there too. `condition` and
      `rank` [L] of the fits, and how many sequences they were `fitted_on` and `scored_on`.
    """
    # A map has D^2 + D numbers, so in sample it also fits what is particular to its tokens.
    half = len(tokens_NT) // 2
    fitted_on, scored_on = tokens_NT[:half], tokens_NT[half:]
    maps = fit(subject, fitted_on)
    # The released code's linear module computes x @ weight.T, with the solution as weight.
    transposed = maps._replace(update_LDD=maps.update_LDD.swapaxes(1, 2))
    return {
        **_summary(*replaced_losses(subject, scored_on, maps)),
        "in_sample": _summary(*replaced_losses(subject, fitted_on, maps)),
        "as_published": _summary(*replaced_losses(subject, fitted_on, transposed)),
        "condition": maps.condition_L.tolist(),
        "rank": maps.rank_L.tolist(),
        "fitted_on": len(fitted_on),
        "scored_on": len(scored_on),
    }


def check(d_model: int, tokens_NT: np.ndarray) -> None:
    """Checks that half of the sequences are enough tokens to fit a map.

    Raises:
      ConfigError: they are not.
    """
    half, length = len(tokens_NT) // 2, tokens_NT.shape[1]
    if half * length <= d_model + 1:
        raise ConfigError(
            f"{half} sequences of {length} tokens can't fit a map of {d_model} + 1 inputs:"
            " raise --sequences"
        )


def fit(subject: Subject, tokens_NT: np.ndarray) -> AffineMaps:
    """The affine least-squares map of each block's update.

    Of least norm where the tokens leave it open.

    Args:
      tokens_NT: sequences, more tokens than the D + 1 inputs of a map.
    """
    grams_LAA, targets_LAD = _normal_equations(subject, tokens_NT)
    # The update, not the output, is fitted: least norm then means closest to the identity.
    solutions = []
    for gram_AA, target_AD in zip(grams_LAA, targets_LAD, strict=True):
        solutions.append(_solve(gram_AA, target_AD))
    map_LAD, condition_L, rank_L = (
        np.array(part) for part in zip(*solutions, strict=True)
    )
    return AffineMaps(map_LAD[:, :-1], map_LAD[:, -1], condition_L, rank_L)


def _normal_equations(
    subject: Subject, tokens_NT: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The normal equations of least squares, sums over all tokens.

    In float64 on the host, as products square the condition number of the activations.

    Returns:
      Inputs times inputs, [L, A, A], and inputs times updates, [L, A, D].
    """
    layers, width = subject.cfg.n_layers, subject.cfg.d_model
    grams_LAA = np.zeros((layers, width + 1, width + 1))
    targets_LAD = np.zeros((layers, width + 1, width))
    for rows in subject.rows(tokens_NT):
        states_LBTD = network.states(
            subject.net, subject.params, rows.tokens, rows.segments
        )
        # Rows that only fill up the last batch must not enter the sums.
        states_LBTD = np.asarray(states_LBTD)[:, : rows.valid]
        for layer in range(layers):
            x_MD = states_LBTD[layer].reshape(-1, width).astype(np.float64)
            update_MD = states_LBTD[layer + 1].reshape(-1, width) - x_MD
            # A one beside each token fits the bias.
            inputs_MA = np.concatenate([x_MD, np.ones((len(x_MD), 1))], axis=1)
            grams_LAA[layer] += inputs_MA.T @ inputs_MA
            targets_LAD[layer] += inputs_MA.T @ update_MD
    return grams_LAA, targets_LAD


def _solve(gram_AA: np.ndarray, target_AD: np.ndarray) -> tuple[np.ndarray, float, int]:
    """The solution of least norm, [A, D], by eigenvalues of the Gram matrix.

    Returns:
      Also the condition number and the rank, within the directions that tokens reach.
    """
    values, vectors = np.linalg.eigh(gram_AA)
    # Eigenvalues below the rounding error of the largest belong to directions that no
    # token reaches; the solution stays zero along these.
    smallest = values[-1] * len(values) * np.finfo(np.float64).eps
    reached = values > smallest
    values, vectors = values[reached], vectors[:, reached]
    solution_AD = vectors @ ((vectors.T @ target_AD) / values[:, None])
    return solution_AD, float(values[-1] / values[0]), len(values)


def replaced_losses(
    subject: Subject, tokens_NT: np.ndarray, maps: AffineMaps
) -> tuple[np.ndarray, np.ndarray]:
    """Loss of each sequence, with each block replaced and with none.

    Returns:
      [L, N] and [N]; nats per token.
    """
    net, params = subject.net, subject.params

    def measure(rows, states_LBTD):
        # What lies before the block is not computed again.
        losses_LB = []
        for layer in subject.blocks("usefulness"):
            losses_B = _losses_with_map(
                net,
                params,
                states_LBTD[layer],
                maps.update_LDD[layer],
                maps.bias_LD[layer],
                layer,
                rows,
            )
            losses_LB.append(np.asarray(losses_B))
        layers = subject.cfg.n_layers
        intact_B = network.tail_losses(net, params, states_LBTD[-1], layers, rows)
        return np.array([*losses_LB, intact_B])

    losses = per_sequence(subject, tokens_NT, measure)
    return losses[:-1], losses[-1]


@partial(jax.jit, static_argnums=0)
def _losses_with_map(net, params, x_BTD, update_DD, bias_D, number, rows):
    """The losses [B] when a map takes the place of block `number`, whose input is `x_BTD`."""
    update_BTD = x_BTD @ update_DD.astype(x_BTD.dtype)
    y_BTD = x_BTD + update_BTD + bias_D.astype(x_BTD.dtype)[None, None]
    return network.tail_losses(net, params, y_BTD, number + 1, rows)


def _summary(replaced_LN: np.ndarray, intact_N: np.ndarray) -> dict[str, Any]:
    """The score, and its intervals, from the losses of each sequence."""
    sequences = len(intact_N)

    # Losses are averaged before the ratio is taken, so that a sequence with a small loss does
    # not dominate; then the logarithm makes a ratio and its inverse equally far from 0.
    def ratios(weights_RN):
        """Ratios of the mean losses under weights of the sequences, [R, L]."""
        return (weights_RN @ replaced_LN.T) / (weights_RN @ intact_N)[:, None]

    def mean_log_ratio(weights_RN):
        return np.log(ratios(weights_RN)).mean(axis=1)

    even_1N = np.full((1, sequences), 1 / sequences)
    ratio_L = ratios(even_1N)[0]
    # The published score counts blocks above a threshold, which moves in steps of 1 / L.
    shares = {}
    for threshold in SHARES:

        def share_above(weights_RN, threshold=threshold):
            return (ratios(weights_RN) > threshold).mean(axis=1)

        shares[f"{threshold:.2f}"] = {
            "share": float((ratio_L > threshold).mean()),
            "ci95": interval(share_above, sequences),
        }
    return {
        "loss_ratio": ratio_L.tolist(),
        "score": float(np.log(ratio_L).mean()),
        "ci95": interval(mean_log_ratio, sequences),
        "share_above": shares,
    }
