"""Does the order of blocks matter? Swaps every two blocks and measures the loss.

Permutation score. Source: arXiv 2603.15389, `compute_layer_score.py --compute_permutation`
of its released code.

N sequences, B rows, L blocks, P pairs of blocks, R resamplings of the sequences.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsecod_jax.analysis import network
from sparsecod_jax.analysis.bootstrap import interval
from sparsecod_jax.analysis.subject import Subject, per_sequence


def permutation(subject: Subject, tokens_NT: np.ndarray) -> dict[str, Any]:
    """|loss - loss with blocks i and j swapped| / loss, without unit.

    A block takes all its parameters to the depth of the other; the factor of LayerNorm
    Scaling stays with the depth.

    Returns:
      `matrix[i][j]`, symmetric, [L][L]; `score`, the mean over all pairs; `ci95`, its
      interval over sequences.
    """
    layers = subject.cfg.n_layers
    if layers == 1:
        return {"matrix": [[0.0]], "score": None}  # nothing to swap
    swapped_LLN, intact_N = losses(subject, tokens_NT)
    first_P, second_P = np.triu_indices(layers, 1)
    swapped_PN = swapped_LLN[first_P, second_P]

    def changes(weights_RN):
        """The score of each pair under weights of the sequences, [R, P]."""
        # Losses are averaged before the ratio is taken: the ratio of means, not the mean of
        # ratios, so that a sequence with a small loss does not dominate.
        intact_R1 = (weights_RN @ intact_N)[:, None]
        swapped_RP = weights_RN @ swapped_PN.T
        return np.abs(swapped_RP - intact_R1) / intact_R1

    # The score itself weighs all sequences alike; its interval resamples them.
    sequences = len(intact_N)
    even_1N = np.full((1, sequences), 1 / sequences)
    change_P = changes(even_1N)[0]
    matrix_LL = np.zeros((layers, layers))
    matrix_LL[first_P, second_P] = change_P
    matrix_LL[second_P, first_P] = change_P
    return {
        "matrix": matrix_LL.tolist(),
        "score": float(change_P.mean()),
        "ci95": interval(lambda weights: changes(weights).mean(axis=1), sequences),
    }


def losses(subject: Subject, tokens_NT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Losses of each sequence, with every two blocks swapped and with none.

    Returns:
      [L, L, N], zeros unless the second block is the later one, and [N]; nats per token.
    """
    net, params, layers = subject.net, subject.params, subject.cfg.n_layers

    def measure(rows, states_LBTD):
        swapped = []
        for first in subject.blocks("permutation"):
            # What lies before the first of two swapped blocks is not computed again.
            losses_LB = _swapped_losses(net, params, states_LBTD[first], first, rows)
            swapped.append(np.asarray(losses_LB))
        intact_B = network.tail_losses(net, params, states_LBTD[-1], layers, rows)
        return np.concatenate([*swapped, np.asarray(intact_B)[None]])

    measured = per_sequence(subject, tokens_NT, measure)  # [L * L + 1, N]
    return measured[:-1].reshape(layers, layers, -1), measured[-1]


@partial(jax.jit, static_argnums=0)
def _swapped_losses(net, params, x_BTD, first, rows):
    """The losses when block `first` is swapped with each later one.

    Args:
      x_BTD: the input of block `first`, which is that of the intact network.

    Returns:
      [L, B], zeros for blocks that are not later.
    """
    layers = net.cfg.n_layers
    order_L = jnp.arange(layers)

    # `order_L` holds which block lies at each depth, so one program serves all pairs.
    def swap(second, losses_LB):
        swapped_L = order_L.at[first].set(second).at[second].set(first)
        y_BTD = network.run(net, params, x_BTD, first, swapped_L, rows.segments)
        losses_B = network.losses(net, params, y_BTD, rows.tokens)
        return losses_LB.at[second].set(losses_B)

    # One pair after the other: side by side, each would need a copy of a block's parameters.
    losses_LB = jnp.zeros((layers, len(x_BTD)), x_BTD.dtype)
    return jax.lax.fori_loop(first + 1, layers, swap, losses_LB)
