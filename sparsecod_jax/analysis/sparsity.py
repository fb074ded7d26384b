"""How sparse is a model: its weights, its attention, its activations, the use of its experts?

Measures of weights and attention stand beside their values for something without structure: Gaussian weights, uniform attention.

N sequences, B rows, T query and S key positions, H heads, F hidden width, E experts, L blocks.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsecod_jax.analysis import network
from sparsecod_jax.analysis.subject import Subject, per_sequence
from sparsecod_jax.storage.digest import names

NEAR_ZERO = (0.01, 0.1)  # of a matrix's standard deviation
GAUSSIAN = {
    **{f"near_zero_{share}": math.erf(share / math.sqrt(2)) for share in NEAR_ZERO},
    "gini": math.sqrt(2) - 1,
    "hoyer": 1 - math.sqrt(2 / math.pi),
}
SMALL_SHARE = 0.1  # of uniform attention's weight
SMALL_WEIGHT = 1e-3  # the absolute threshold; uniform attention itself falls below it from 1,000 keys on
ATTENTION = (
    "density",
    "concentration",
    "entropy",
    "small_relative",
    "small_absolute",
    "sink",
    "gain",
)
QUERIES = 16  # positions whose attention exists at once
SORTED_WEIGHTS = 2**20  # of a matrix, drawn at random, where it has more


def weights(params: Any) -> dict[str, Any]:
    """Sparsity of each kind of matrix in each block, by name: {kind: {measure: [L]}}, and the Gaussian values."""
    blocks = params["blocks"]
    matrices = {
        name: leaf
        for name, leaf in zip(names(blocks), jax.tree.leaves(blocks), strict=True)
        if not name.endswith("gain")
    }
    kinds = {}
    for name, stacked in matrices.items():
        found = [weight_sparsity(np.asarray(matrix)) for matrix in stacked]
        kinds[name] = {
            measure: [each[measure] for each in found] for measure in found[0]
        }
    return {"gaussian": GAUSSIAN, "kinds": kinds}


def weight_sparsity(matrix: np.ndarray) -> dict[str, float]:
    """Measures of one matrix: root mean square, share near zero relative to the standard deviation, Gini index (Hurley and Rickard, arXiv
    0811.4706) and Hoyer's measure (2004) of the magnitudes, which are 0 when all are equal and near 1 when one stands out.
    """
    w = matrix.astype(np.float64).ravel()
    if w.size > SORTED_WEIGHTS:
        w = np.random.default_rng(0).choice(w, SORTED_WEIGHTS, replace=False)
    size, magnitudes, deviation = w.size, np.sort(np.abs(w)), w.std()
    ranks = np.arange(1, size + 1)
    total = magnitudes.sum()
    norm = np.linalg.norm(w)
    return {
        "rms": norm / np.sqrt(size),
        **{
            f"near_zero_{share}": float((magnitudes < share * deviation).mean())
            for share in NEAR_ZERO
        },
        "gini": float(
            2 * (ranks * magnitudes).sum() / (size * total) - (size + 1) / size
        )
        if total
        else 0.0,
        "hoyer": float((np.sqrt(size) - total / norm) / (np.sqrt(size) - 1))
        if total
        else 0.0,
    }


def attention(subject: Subject, tokens_NT: np.ndarray) -> dict[str, Any]:
    """Sparsity of each head's attention in each block, {measure: [L][H]}, and the value of uniform attention; means over the positions
    that see more than one key.

    For weights a over the n keys that a position sees: `density` 1 / (n sum a^2), and its inverse `concentration`; `entropy` over ln n;
    `small_relative`, the share of keys with a < 0.1 / n; `small_absolute`, with a < 1e-3; `sink`, a of the first position. `gain` is the
    mean of |sum a v|^2 over the mean of |v|^2: what mixing leaves of the values' energy.
    """
    net, params = subject.net, subject.params

    def measure(rows, states_LBTD):
        return np.array(
            [
                np.asarray(
                    _attention(net, params, states_LBTD[number], number, rows.segments)
                )
                for number in subject.blocks("attention")
            ]
        )

    means = per_sequence(subject, tokens_NT, measure).mean(
        axis=-1
    )  # block, {measured, uniform}, measure, head
    measured, uniform = (
        {name: means[:, kind, place].tolist() for place, name in enumerate(ATTENTION)}
        for kind in (0, 1)
    )
    return {"probe_length": tokens_NT.shape[1], "heads": measured, "uniform": uniform}


@partial(jax.jit, static_argnums=0)
def _attention(net, params, x_BTD, number, segments_BT):
    """Measures of the real and of uniform attention, [2, measures, H, B]."""
    q_BTHK, k_BTJK, v_BTJK = network.BlockAt(
        net, params, number, number
    ).queries_keys_values(x_BTD)
    B, T, H, K = q_BTHK.shape
    k_BSHK, v_BSHK = (jnp.repeat(z, H // z.shape[2], axis=2) for z in (k_BTJK, v_BTJK))
    energy_BH = jnp.square(v_BSHK).sum(axis=-1).mean(axis=1)
    segments_BT = jnp.zeros((B, T), jnp.int32) if segments_BT is None else segments_BT

    def position(query):
        q_BHK, segment_B, place = query
        seen_BS = (jnp.arange(T)[None, :] <= place) & (
            segments_BT == segment_B[:, None]
        )
        logits_BHS = jnp.einsum("bhk,bshk->bhs", q_BHK, k_BSHK) / jnp.sqrt(K)
        real_BHS = jax.nn.softmax(
            jnp.where(seen_BS[:, None], logits_BHS, -jnp.inf), axis=-1
        )
        uniform_BHS = jnp.broadcast_to(
            (seen_BS / seen_BS.sum(axis=-1, keepdims=True))[:, None], real_BHS.shape
        ).astype(real_BHS.dtype)
        counted_B = seen_BS.sum(axis=-1) > 1
        both = jnp.stack(
            [_row_measures(a_BHS, seen_BS, v_BSHK) for a_BHS in (real_BHS, uniform_BHS)]
        )
        return jnp.where(counted_B[None, None, None], both, 0), counted_B

    queries = (q_BTHK.swapaxes(0, 1), segments_BT.T, jnp.arange(T))
    sums, counted_TB = jax.lax.map(position, queries, batch_size=QUERIES)
    means = sums.sum(axis=0) / jnp.maximum(counted_TB.sum(axis=0), 1)[None, None, None]
    return means.at[:, ATTENTION.index("gain")].divide(energy_BH.T[None])


def _row_measures(a_BHS, seen_BS, v_BSHK):
    """ATTENTION of one position, the gain not yet divided by the values' energy; [measures, H, B]."""
    seen_B1S, count_B1 = seen_BS[:, None], seen_BS.sum(axis=-1)[:, None]
    mixed_BHK = jnp.einsum("bhs,bshk->bhk", a_BHS, v_BSHK)
    first_BS = seen_BS & (jnp.cumsum(seen_BS, axis=-1) == 1)
    concentration_BH = count_B1 * jnp.square(a_BHS).sum(axis=-1)
    measures = [
        1 / concentration_BH,
        concentration_BH,
        jax.scipy.special.entr(a_BHS).sum(axis=-1) / jnp.log(jnp.maximum(count_B1, 2)),
        ((a_BHS < SMALL_SHARE / count_B1[..., None]) & seen_B1S).sum(axis=-1)
        / count_B1,
        ((a_BHS < SMALL_WEIGHT) & seen_B1S).sum(axis=-1) / count_B1,
        jnp.where(first_BS[:, None], a_BHS, 0).sum(axis=-1),
        jnp.square(mixed_BHK).sum(axis=-1),
    ]
    return jnp.stack(measures).swapaxes(1, 2)


def activations(subject: Subject, tokens_NT: np.ndarray) -> dict[str, Any]:
    """Sparsity of each block's activations, {measure: [L]}, means over tokens.

    `massive` is the largest magnitude of the stream over its median. Of a dense FFN's hidden layer: `near_zero`, the share below 1 % of
    its root mean square; `hoyer`; and `participation`, (sum h^2)^2 / (F sum h^4), 1 when all are equally large.
    """
    net, params = subject.net, subject.params

    def measure(rows, states_LBTD):
        pairs = (
            (number, states_LBTD[number], states_LBTD[number + 1])
            for number in subject.blocks("activations")
        )
        return np.array(
            [
                np.asarray(
                    _activations(net, params, x_BTD, y_BTD, number, rows.segments)
                )
                for number, x_BTD, y_BTD in pairs
            ]
        )

    means = per_sequence(subject, tokens_NT, measure).mean(axis=-1)
    measures = (
        ("massive",)
        if net.cfg.n_experts
        else ("massive", "near_zero", "hoyer", "participation")
    )
    return {name: means[:, place].tolist() for place, name in enumerate(measures)}


@partial(jax.jit, static_argnums=0)
def _activations(net, params, x_BTD, y_BTD, number, segments_BT):
    """Measures of a block's output and hidden layer, [measures, B]."""
    size_BTD = jnp.abs(y_BTD)
    massive_BT = size_BTD.max(axis=-1) / jnp.median(size_BTD, axis=-1)
    if net.cfg.n_experts:
        return massive_BT.mean(axis=-1)[None]
    layer = network.BlockAt(net, params, number, number)
    h_BTF = layer.activations(layer.with_attention(x_BTD, segments_BT))
    square_BTF, root = jnp.square(h_BTF), jnp.sqrt(h_BTF.shape[-1])
    energy_BT = square_BTF.sum(axis=-1)
    near_zero_BT = (
        jnp.abs(h_BTF)
        < NEAR_ZERO[0] * jnp.sqrt(square_BTF.mean(axis=-1, keepdims=True))
    ).mean(axis=-1)
    hoyer_BT = (root - jnp.abs(h_BTF).sum(axis=-1) / jnp.sqrt(energy_BT)) / (root - 1)
    participation_BT = jnp.square(energy_BT) / (
        h_BTF.shape[-1] * jnp.square(square_BTF).sum(axis=-1)
    )
    return jnp.stack(
        [
            measure_BT.mean(axis=-1)
            for measure_BT in (massive_BT, near_zero_BT, hoyer_BT, participation_BT)
        ]
    )


def experts(subject: Subject, tokens_NT: np.ndarray) -> dict[str, Any]:
    """What each expert of each block is used for, {measure: [L][E]}.

    `utilisation` is the share of all choices, 1/E when even. `importance` is (loss without the expert - loss) / loss, the gates left as
    they are.
    """
    net, params, layers = subject.net, subject.params, subject.cfg.n_layers

    def measure(rows, states_LBTD):
        used = [
            _used(net, params, states_LBTD[number], number, rows.segments)[0]
            for number in range(layers)
        ]
        lost = [
            np.asarray(_without_experts(net, params, states_LBTD[number], number, rows))
            for number in subject.blocks("experts")
        ]
        intact = network.tail_losses(net, params, states_LBTD[-1], layers, rows)
        return np.array([used, lost, np.broadcast_to(intact, np.shape(lost))])

    utilisation, lost, intact = per_sequence(subject, tokens_NT, measure).mean(axis=-1)
    return {
        "utilisation": utilisation.tolist(),
        "importance": (lost / intact - 1).tolist(),
    }


def gate_squares(subject: Subject, tokens_NT: np.ndarray) -> list[float]:
    """Mean over tokens of the sum of squared gates of each block, [L], which sets the variance of the branch."""

    def measure(rows, states_LBTD):
        numbers = range(subject.cfg.n_layers)
        return np.array(
            [
                _used(
                    subject.net,
                    subject.params,
                    states_LBTD[number],
                    number,
                    rows.segments,
                )[1]
                for number in numbers
            ]
        )

    return per_sequence(subject, tokens_NT, measure).mean(axis=-1).tolist()


@partial(jax.jit, static_argnums=0)
def _used(net, params, x_BTD, number, segments_BT):
    """The share of each row's choices that each expert gets, [E, B], and the mean of the sum of squared gates, [B]."""
    layer = network.BlockAt(net, params, number, number)
    u_BTD = layer.with_attention(x_BTD, segments_BT)

    def row(u_TD):
        stats = layer.routing(u_TD[None])
        return stats["router/counts"] / stats["router/counts"].sum(), stats[
            "router/gate_square_sum"
        ]

    share_BE, squares_B = jax.lax.map(row, u_BTD)
    return share_BE.T, squares_B


@partial(jax.jit, static_argnums=0)
def _without_experts(net, params, x_BTD, number, rows):
    """The losses [E, B] without each expert of a block."""

    def without(expert):
        y_BTD = network.BlockAt(net, params, number, number, silent=expert).output(
            x_BTD, rows.segments
        )
        return network.tail_losses(net, params, y_BTD, number + 1, rows)

    return jax.lax.map(without, jnp.arange(net.cfg.n_experts))
