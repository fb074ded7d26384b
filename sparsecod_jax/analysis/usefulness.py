"""Could an affine map of each token do what the block does?

Each block is replaced by the map that fits it best, and the loss is measured again. A ratio of 1 means that the block does no more than
such a map. The map is fitted on one half of the sequences and scored on the other. Source: arXiv 2603.15389; docs/design.md says where its
released code differs.

N sequences, L blocks, D width, A = D + 1 (a one beside each token, for the bias), R resamplings.
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
    """y = x + x @ update + bias, for each block."""

    update_LDD: np.ndarray
    bias_LD: np.ndarray
    condition_L: (
        np.ndarray
    )  # of the Gram matrix, within the directions that the tokens reach
    rank_L: np.ndarray  # how many these are, the bias's counted


def usefulness(subject: Subject, tokens_NT: np.ndarray) -> dict[str, Any]:
    """Loss with a block replaced over loss without, for every block; the headline is the mean of its logarithm.

    `in_sample` is scored where it was fitted. `as_published` is the transposed map that the released code installs, scored there too.
    """
    half = len(tokens_NT) // 2
    fitted_on, scored_on = tokens_NT[:half], tokens_NT[half:]
    maps = fit(subject, fitted_on)
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
    """Raises ConfigError when half of the sequences are too few tokens to fit a map."""
    half, length = len(tokens_NT) // 2, tokens_NT.shape[1]
    if half * length <= d_model + 1:
        raise ConfigError(
            f"{half} sequences of {length} tokens can't fit a map of {d_model} + 1 inputs: raise --sequences"
        )


def fit(subject: Subject, tokens_NT: np.ndarray) -> AffineMaps:
    """The affine least-squares map of each block's update, of least norm where tokens leave it open.

    Sums of products are added up and solved in float64: they square the condition number of the activations.
    """
    layers, width = subject.cfg.n_layers, subject.cfg.d_model
    grams_LAA, targets_LAD = (
        np.zeros((layers, width + 1, width + 1)),
        np.zeros((layers, width + 1, width)),
    )
    for rows in subject.rows(tokens_NT):
        states = np.asarray(
            network.states(subject.net, subject.params, rows.tokens, rows.segments)
        )[:, : rows.valid]
        for layer in range(layers):
            x = states[layer].reshape(-1, width).astype(np.float64)
            inputs = np.concatenate([x, np.ones((len(x), 1))], axis=1)
            grams_LAA[layer] += inputs.T @ inputs
            targets_LAD[layer] += inputs.T @ (states[layer + 1].reshape(-1, width) - x)
    solved = [
        _solve(gram, target)
        for gram, target in zip(grams_LAA, targets_LAD, strict=True)
    ]
    update, bias, condition, rank = (
        np.array(part) for part in zip(*solved, strict=True)
    )
    return AffineMaps(update, bias, condition, rank)


def _solve(
    gram_AA: np.ndarray, target_AD: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float, int]:
    values, vectors = np.linalg.eigh(gram_AA)
    reached = values > values[-1] * len(values) * np.finfo(np.float64).eps
    values, vectors = values[reached], vectors[:, reached]
    solution = vectors @ ((vectors.T @ target_AD) / values[:, None])
    return solution[:-1], solution[-1], float(values[-1] / values[0]), len(values)


def replaced_losses(
    subject: Subject, tokens_NT: np.ndarray, maps: AffineMaps
) -> tuple[np.ndarray, np.ndarray]:
    """Loss of each sequence, with each block replaced and with none: [L, N] and [N]."""
    net, params = subject.net, subject.params

    def measure(rows, states_LBTD):
        replaced = []
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
            replaced.append(np.asarray(losses_B))
        return np.array(
            [
                *replaced,
                network.tail_losses(net, params, states_LBTD[-1], len(replaced), rows),
            ]
        )

    losses = per_sequence(subject, tokens_NT, measure)
    return losses[:-1], losses[-1]


@partial(jax.jit, static_argnums=0)
def _losses_with_map(net, params, x_BTD, update_DD, bias_D, number, rows):
    y_BTD = (
        x_BTD
        + x_BTD @ update_DD.astype(x_BTD.dtype)
        + bias_D.astype(x_BTD.dtype)[None, None]
    )
    return network.tail_losses(net, params, y_BTD, number + 1, rows)


def _summary(replaced_LN: np.ndarray, intact_N: np.ndarray) -> dict[str, Any]:
    def ratios(weights_RN):
        return (weights_RN @ replaced_LN.T) / (weights_RN @ intact_N)[:, None]

    sequences = len(intact_N)
    ratio_L = ratios(np.full((1, sequences), 1 / sequences))[0]
    shares = {
        f"{threshold:.2f}": {
            "share": float((ratio_L > threshold).mean()),
            "ci95": interval(
                lambda weights, above=threshold: (ratios(weights) > above).mean(axis=1),
                sequences,
            ),
        }
        for threshold in SHARES
    }
    return {
        "loss_ratio": ratio_L.tolist(),
        "score": float(np.log(ratio_L).mean()),
        "ci95": interval(
            lambda weights: np.log(ratios(weights)).mean(axis=1), sequences
        ),
        "share_above": shares,
    }
