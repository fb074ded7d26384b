"""Does the order of blocks matter? Swaps every two blocks and measures the loss. Source: arXiv 2603.15389.

N sequences, B rows, L blocks.
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
    """|loss - loss with blocks i and j swapped| / loss, `matrix[i][j]`, symmetric; `score` is the mean over all pairs.

    A block takes all its parameters to the other's place; the factor of LayerNorm Scaling stays with the place.
    """
    net, params, layers = subject.net, subject.params, subject.cfg.n_layers
    if layers == 1:
        return {"matrix": [[0.0]], "score": None}  # nothing to swap

    def measure(rows, states_LBTD):
        swapped = [
            np.asarray(_swapped_losses(net, params, states_LBTD[first], first, rows))
            for first in subject.blocks("permutation")
        ]
        intact = network.tail_losses(net, params, states_LBTD[-1], layers, rows)
        return np.concatenate(
            [np.reshape(swapped, (layers * layers, -1)), intact[None]]
        )

    losses = per_sequence(subject, tokens_NT, measure)
    swapped_LLN, intact_N = losses[:-1].reshape(layers, layers, -1), losses[-1]
    first, second = np.triu_indices(layers, 1)

    def pairs(weights_RN):
        intact_R1 = (weights_RN @ intact_N)[:, None]
        return np.abs(weights_RN @ swapped_LLN[first, second].T - intact_R1) / intact_R1

    sequences = len(intact_N)
    score = pairs(np.full((1, sequences), 1 / sequences))[0]
    matrix = np.zeros((layers, layers))
    matrix[first, second] = matrix[second, first] = score
    return {
        "matrix": matrix.tolist(),
        "score": float(score.mean()),
        "ci95": interval(lambda weights: pairs(weights).mean(axis=1), sequences),
    }


@partial(jax.jit, static_argnums=0)
def _swapped_losses(net, params, x_BTD, first, rows):
    """The losses [L, B] when block `first`, which gets `x_BTD`, is swapped with each later one; zeros for the others."""
    layers = net.cfg.n_layers
    order_L = jnp.arange(layers)

    def swap(second, losses_LB):
        swapped_L = order_L.at[first].set(second).at[second].set(first)
        y_BTD = network.run(net, params, x_BTD, first, swapped_L, rows.segments)
        return losses_LB.at[second].set(network.losses(net, params, y_BTD, rows.tokens))

    return jax.lax.fori_loop(
        first + 1, layers, swap, jnp.zeros((layers, len(x_BTD)), x_BTD.dtype)
    )
