"""How far is a block from the identity? Its Jacobian, averaged over tokens.

Jacobian score: J[i, j] is the derivative of channel i of the block's mean output by channel
j of its input, when the same change is made at every position: (1/BT) sum over b, t, s of
dY[b, s, i] / dX[b, t, j]. Source: arXiv 2603.15389, `compute_jacobian.py` of its released
code; docs/design.md describes where that differs.

N sequences, B rows, T positions of queries, S positions of keys, D width, H heads, J heads
of keys and values, K width of a head, L blocks, P probes.
"""

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from sparsecod_jax.analysis import network
from sparsecod_jax.analysis.subject import Subject
from sparsecod_jax.model.attention import Kernel

Method = Literal["exact", "estimate"]

EXACT_WIDTH = 512  # above it the distance is estimated
TOGETHER = 8  # cotangents pulled back at once
PROBES = 16  # drawn at once, until the estimate is good enough
MOST_PROBES = 512
STANDARD_ERROR = 0.03  # of the estimate, relative


def jacobian(
    subject: Subject, tokens_NT: np.ndarray, seed: int, method: Method | None = None
) -> dict[str, Any]:
    """|J - I|_F / D for every block, without unit.

    Args:
      seed: of the probes of an estimate.
      method: None is exact up to EXACT_WIDTH and an estimate above.

    Returns:
      What `exact` or `estimate` returns, [L] each, and the same in `same_position`, which
      leaves out what crosses positions.
    """
    if method is None:
        method = "exact" if subject.cfg.d_model <= EXACT_WIDTH else "estimate"
    measure = exact if method == "exact" else partial(estimate, seed=seed)
    return {
        **measure(subject, tokens_NT),
        "same_position": measure(subject, tokens_NT, kernel=own_position),
    }


def exact(
    subject: Subject, tokens_NT: np.ndarray, kernel: Kernel | None = None
) -> dict[str, Any]:
    """From all D rows of J, [L] each, without unit.

    Args:
      kernel: of attention; None is the network's own.

    Returns:
      `distance_from_identity`, |J - I|_F / D as published, and `relative_distance`, over
      sqrt(D), which compares across widths; `off_diagonal`, root mean square;
      `diagonal_mean`, `diagonal_std`; and `spectral_norm`, the largest singular value.
    """
    # Pulled back, a unit vector gives one row of J.
    unit_vectors_DD = np.eye(subject.cfg.d_model)
    rows_LDD = pulled_back(subject, tokens_NT, unit_vectors_DD, kernel)
    described = [_describe(jacobian_DD) for jacobian_DD in rows_LDD]
    values = {name: [block[name] for block in described] for name in described[0]}
    return {"method": "exact", **values}


def _describe(jacobian_DD: np.ndarray) -> dict[str, Any]:
    """The numbers of one block, from its Jacobian."""
    width, diagonal_D = len(jacobian_DD), np.diag(jacobian_DD)
    # Frobenius norms, of all entries and of the D^2 - D entries off the diagonal.
    distance = np.linalg.norm(jacobian_DD - np.eye(width))
    off_diagonal = np.linalg.norm(jacobian_DD - np.diag(diagonal_D))
    spectral_norm = np.nan
    if np.isfinite(jacobian_DD).all():  # else numpy raises
        spectral_norm = np.linalg.norm(jacobian_DD, 2)
    return {
        "distance_from_identity": distance / width,
        "relative_distance": distance / np.sqrt(width),
        "off_diagonal": off_diagonal / np.sqrt(width**2 - width),
        "diagonal_mean": diagonal_D.mean(),
        "diagonal_std": diagonal_D.std(ddof=1),
        "spectral_norm": spectral_norm,
    }


def estimate(
    subject: Subject, tokens_NT: np.ndarray, kernel: Kernel | None = None, *, seed: int
) -> dict[str, Any]:
    """From random probes v, as |J - I|_F^2 is the mean of |J'v - v|^2 over normal v.

    Source: the trace estimator of Hutchinson 1990. A probe is the same for all batches, so
    that it sees the average J. More are drawn until the standard error of every block's
    distance is at most STANDARD_ERROR of it, or there are MOST_PROBES.

    Args:
      kernel: of attention; None is the network's own.
      seed: of the probes.

    Returns:
      `distance_from_identity` and `relative_distance` as `exact`, [L] each; `probes`, how
      many there were; and `standard_error` of the first, [L], that of the probes for these
      sequences.
    """
    rng, width = np.random.default_rng(seed), subject.cfg.d_model
    squares_LP = np.zeros((subject.cfg.n_layers, 0))
    while True:
        probes_PD = rng.standard_normal((PROBES, width)).astype(np.float32)
        # J'v - v for each probe; its square has the mean |J - I|_F^2 over normal v.
        moved_LPD = pulled_back(subject, tokens_NT, probes_PD, kernel) - probes_PD
        drawn_LP = np.square(moved_LPD).sum(axis=-1)
        squares_LP = np.concatenate([squares_LP, drawn_LP], axis=1)
        count = squares_LP.shape[1]
        distance_L = np.sqrt(squares_LP.mean(axis=1))
        # The error of the mean square; of its root by the delta method, d sqrt(m) =
        # dm / (2 sqrt(m)). A block that is the identity has none.
        square_error_L = squares_LP.std(axis=1, ddof=1) / np.sqrt(count)
        error_L = square_error_L / np.maximum(2 * distance_L, 1e-30)
        if count >= MOST_PROBES or np.all(error_L <= STANDARD_ERROR * distance_L):
            break
    return {
        "method": "estimate",
        "probes": count,
        "distance_from_identity": (distance_L / width).tolist(),
        "standard_error": (error_L / width).tolist(),
        "relative_distance": (distance_L / np.sqrt(width)).tolist(),
    }


def pulled_back(
    subject: Subject,
    tokens_NT: np.ndarray,
    cotangents_PD: np.ndarray,
    kernel: Kernel | None = None,
) -> np.ndarray:
    """J'v for each cotangent v and block, [L, P, D] float64.

    Args:
      cotangents_PD: the vectors v; of unit vectors the results are the rows of J.
      kernel: of attention; None is the network's own.
    """
    net, params = subject.net, subject.params
    total_LPD = np.zeros((subject.cfg.n_layers, *cotangents_PD.shape))
    for rows in subject.rows(tokens_NT):
        # Rows that only fill up the last batch must not enter the sum.
        counted_B = np.arange(len(rows.tokens)) < rows.valid
        states_LBTD = network.states(net, params, rows.tokens, rows.segments)
        # J is a mean over tokens, so sums over batches are divided once, at the end.
        for number in subject.blocks("jacobian"):
            total_LPD[number] += pull(
                net,
                params,
                states_LBTD[number],
                number,
                rows.segments,
                counted_B,
                cotangents_PD,
                kernel,
            )
    return total_LPD / tokens_NT.size


@partial(jax.jit, static_argnums=(0, 7))
def pull(net, params, x_BTD, number, segments_BT, counted_B, cotangents_PD, kernel):
    """Each cotangent pulled back through a block, summed over positions and rows, [P, D].

    The gradient of the cotangent times the sum of the block's output over the counted rows.
    """
    block = network.BlockAt(net, params, number, number, kernel)
    _, pull_back = jax.vjp(lambda x: block.output(x, segments_BT), x_BTD)

    # The mean output is a sum over positions, so each position gets the same cotangent; the
    # same change at every position sums the gradient over them.
    def one(cotangent_D):
        cotangent_BTD = jnp.where(
            counted_B[:, None, None],
            cotangent_D.astype(x_BTD.dtype)[None, None],
            jnp.zeros_like(x_BTD),
        )
        return pull_back(cotangent_BTD)[0].sum(axis=(0, 1))

    # The grouped products of a mixture of experts can't be batched.
    together = None if net.cfg.n_experts else TOGETHER
    return jax.lax.map(one, cotangents_PD, batch_size=together)


def own_position(q_BTHK, k_BTJK, v_BTJK, segments_BT):
    """Attention whose gradient stays within a position, [B, T, H, K].

    The output is the usual one. What is differentiated reaches a position from itself
    alone, as query, key and value; the other keys and values are constants.
    """
    H, J, K, T = q_BTHK.shape[2], k_BTJK.shape[2], q_BTHK.shape[3], q_BTHK.shape[1]
    k_BTHK, v_BTHK = (jnp.repeat(z, H // J, axis=2) for z in (k_BTJK, v_BTJK))
    others_k, others_v = jax.lax.stop_gradient((k_BTHK, v_BTHK))
    # [1, 1, T, T], as logits are, with queries before keys.
    own_TT = jnp.eye(T, dtype=bool)[None, None]
    allowed = jnp.tril(jnp.ones((T, T), bool))[None, None]
    if segments_BT is not None:
        same_document = segments_BT[:, :, None] == segments_BT[:, None, :]
        allowed = allowed & same_document[:, None]
    # Logits of a position with itself are differentiated by the key too, the others by the
    # query alone.
    own_BHT = jnp.einsum("bthk,bthk->bht", q_BTHK, k_BTHK)
    others_BHTS = jnp.einsum("bthk,bshk->bhts", q_BTHK, others_k)
    logits_BHTS = jnp.where(own_TT, own_BHT[..., None], others_BHTS) / jnp.sqrt(K)
    weights_BHTS = jax.nn.softmax(jnp.where(allowed, logits_BHTS, -jnp.inf), axis=-1)
    # The second term is 0 and only carries the gradient to a position's own value.
    own_weights_BTH = jnp.diagonal(weights_BHTS, axis1=2, axis2=3).swapaxes(1, 2)
    mixed_BTHK = jnp.einsum("bhts,bshk->bthk", weights_BHTS, others_v)
    return mixed_BTHK + own_weights_BTH[..., None] * (v_BTHK - others_v)
