"""How far is a block from the identity? Its Jacobian, averaged over tokens.

J[i, j] is the derivative of channel i of the block's mean output by channel j of its input, when the same change is made at every
position: (1/BT) sum over b, t, s of dY[b, s, i] / dX[b, t, j]. Source: arXiv 2603.15389; docs/design.md says where its code differs.

N sequences, B rows, T positions, D width, L blocks, P probes.
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
    """|J - I|_F / D for every block; `same_position` leaves out what crosses positions.

    Args:
      seed: of the probes of an estimate.
      method: None is exact up to EXACT_WIDTH and an estimate above.
    """
    method = method or ("exact" if subject.cfg.d_model <= EXACT_WIDTH else "estimate")
    measure = exact if method == "exact" else partial(estimate, seed=seed)
    return {
        **measure(subject, tokens_NT),
        "same_position": measure(subject, tokens_NT, kernel=own_position),
    }


def exact(
    subject: Subject, tokens_NT: np.ndarray, kernel: Kernel | None = None
) -> dict[str, Any]:
    """From all D rows of J: distances as published (over D) and comparable across widths (over sqrt(D)), diagonal, and largest singular
    value.
    """
    width = subject.cfg.d_model
    found = [
        _describe(jacobian_DD)
        for jacobian_DD in pulled_back(subject, tokens_NT, np.eye(width), kernel)
    ]
    return {
        "method": "exact",
        **{name: [each[name] for each in found] for name in found[0]},
    }


def _describe(jacobian_DD: np.ndarray) -> dict[str, Any]:
    width, diagonal_D = len(jacobian_DD), np.diag(jacobian_DD)
    distance = np.linalg.norm(jacobian_DD - np.eye(width))
    return {
        "distance_from_identity": distance / width,
        "relative_distance": distance / np.sqrt(width),
        "off_diagonal": np.linalg.norm(jacobian_DD - np.diag(diagonal_D))
        / np.sqrt(width**2 - width),
        "diagonal_mean": diagonal_D.mean(),
        "diagonal_std": diagonal_D.std(ddof=1),
        "spectral_norm": np.linalg.norm(jacobian_DD, 2)
        if np.isfinite(jacobian_DD).all()
        else np.nan,
    }


def estimate(
    subject: Subject, tokens_NT: np.ndarray, kernel: Kernel | None = None, *, seed: int
) -> dict[str, Any]:
    """From random probes v, as |J - I|_F^2 is the mean of |J'v - v|^2 over normal v (Hutchinson 1990).

    A probe is the same for all batches, so that it sees the average J. More are drawn until the standard error of every block's distance
    is at most STANDARD_ERROR of it, or MOST_PROBES. The error is that of the probes, for these sequences.
    """
    rng, width = np.random.default_rng(seed), subject.cfg.d_model
    squares_LP = np.zeros((subject.cfg.n_layers, 0))
    while True:
        probes_PD = rng.standard_normal((PROBES, width)).astype(np.float32)
        moved_LPD = pulled_back(subject, tokens_NT, probes_PD, kernel) - probes_PD
        squares_LP = np.concatenate(
            [squares_LP, np.square(moved_LPD).sum(axis=-1)], axis=1
        )
        count, mean_L = squares_LP.shape[1], squares_LP.mean(axis=1)
        distance_L = np.sqrt(mean_L)
        error_L = (
            squares_LP.std(axis=1, ddof=1)
            / np.sqrt(count)
            / np.maximum(2 * distance_L, 1e-30)
        )
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
    """J'v for each cotangent v and block, [L, P, D] float64; of unit vectors the rows of J."""
    total_LPD = np.zeros((subject.cfg.n_layers, *cotangents_PD.shape))
    for rows in subject.rows(tokens_NT):
        counted_B = np.arange(len(rows.tokens)) < rows.valid
        states_LBTD = network.states(
            subject.net, subject.params, rows.tokens, rows.segments
        )
        for number in subject.blocks("jacobian"):
            total_LPD[number] += pull(
                subject.net,
                subject.params,
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
    """The gradient of each cotangent times the sum of the block's output over the counted rows, summed over positions; [P, D]."""
    layer = network.BlockAt(net, params, number, number, kernel)
    _, pull_back = jax.vjp(lambda x: layer.output(x, segments_BT), x_BTD)

    def one(cotangent_D):
        cotangent_BTD = jnp.where(
            counted_B[:, None, None],
            cotangent_D.astype(x_BTD.dtype)[None, None],
            jnp.zeros_like(x_BTD),
        )
        return pull_back(cotangent_BTD)[0].sum(axis=(0, 1))

    together = (
        None if net.cfg.n_experts else TOGETHER
    )  # grouped products can't be batched
    return jax.lax.map(one, cotangents_PD, batch_size=together)


def own_position(q_BTHK, k_BTJK, v_BTJK, segments_BT):
    """Attention in which what is differentiated reaches a position from itself alone; the other keys and values are constants."""
    H, J, K, T = q_BTHK.shape[2], k_BTJK.shape[2], q_BTHK.shape[3], q_BTHK.shape[1]
    k_BTHK, v_BTHK = (jnp.repeat(z, H // J, axis=2) for z in (k_BTJK, v_BTJK))
    others_k, others_v = jax.lax.stop_gradient((k_BTHK, v_BTHK))
    own_TT = jnp.eye(T, dtype=bool)[None, None]
    allowed = jnp.tril(jnp.ones((T, T), bool))[None, None]
    if segments_BT is not None:
        allowed = (
            allowed & (segments_BT[:, :, None] == segments_BT[:, None, :])[:, None]
        )
    own_BHT = jnp.einsum("bthk,bthk->bht", q_BTHK, k_BTHK)
    logits_BHTS = jnp.where(
        own_TT, own_BHT[..., None], jnp.einsum("bthk,bshk->bhts", q_BTHK, others_k)
    ) / jnp.sqrt(K)
    weights_BHTS = jax.nn.softmax(jnp.where(allowed, logits_BHTS, -jnp.inf), axis=-1)
    own_weights_BTH = jnp.diagonal(weights_BHTS, axis1=2, axis2=3).swapaxes(1, 2)
    return jnp.einsum("bhts,bshk->bthk", weights_BHTS, others_v) + own_weights_BTH[
        ..., None
    ] * (v_BTHK - others_v)
