"""How sparse is a model: its weights, its attention, its activations, the use of its experts?

Sparsity measures: those of weights and attention stand beside their values for something
without structure, Gaussian weights and uniform attention. Sources: the Gini index by Hurley
and Rickard (arXiv 0811.4706), Hoyer's measure (2004), massive activations by Sun et al.
(arXiv 2402.17762).

N sequences, B rows, T positions of queries, S positions of keys, D width, H heads, J heads
of keys and values, K width of a head, F hidden width, E experts, L blocks, M measures.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsecod_jax.analysis import network
from sparsecod_jax.analysis.subject import Subject, per_sequence
from sparsecod_jax.tree import names

NEAR_ZERO = (0.01, 0.1)  # of a matrix's standard deviation
# The measures of a matrix with independent normal entries.
GAUSSIAN = {
    **{f"near_zero_{share}": math.erf(share / math.sqrt(2)) for share in NEAR_ZERO},
    "gini": math.sqrt(2) - 1,
    "hoyer": 1 - math.sqrt(2 / math.pi),
}
SORTED_WEIGHTS = 2**20  # of a matrix, drawn at random, where it has more

SMALL_SHARE = 0.1  # of uniform attention's weight
# The absolute threshold; uniform attention itself falls below it from 1,000 keys on.
SMALL_WEIGHT = 1e-3
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

ACTIVATIONS = (
    "massive",
    "near_zero",
    "hoyer",
    "participation",
)  # the first also of MoE


def weights(params: Any) -> dict[str, Any]:
    """Sparsity of each kind of matrix in each block.

    Returns:
      `kinds`, {name of the matrix: {measure: [L]}}, and `gaussian`, the values of Gaussian
      weights, {measure: value}.
    """
    blocks = params["blocks"]
    kinds = {}
    for name, stacked in zip(names(blocks), jax.tree.leaves(blocks), strict=True):
        if name.endswith("gain"):
            continue  # a vector, around 1
        by_block = [weight_sparsity(np.asarray(matrix)) for matrix in stacked]
        kinds[name] = _columns(by_block)
    return {"gaussian": GAUSSIAN, "kinds": kinds}


def _columns(rows: list[dict[str, float]]) -> dict[str, list[float]]:
    """The values of each name in turn."""
    return {name: [row[name] for row in rows] for name in rows[0]}


def weight_sparsity(matrix: np.ndarray) -> dict[str, float]:
    """Measures of one matrix.

    Returns:
      `rms`, the root mean square, in the unit of the weights; `near_zero_...`, the share of
      weights below that many standard deviations; `gini` and `hoyer` of the magnitudes,
      which are 0 when all are equal and near 1 when one stands out.
    """
    # Sorting is what costs time, so of a large matrix a sample is enough: with 2^20 weights
    # the standard error of a share is below 0.05 %.
    w = matrix.astype(np.float64).ravel()
    if w.size > SORTED_WEIGHTS:
        w = np.random.default_rng(0).choice(w, SORTED_WEIGHTS, replace=False)
    magnitudes, deviation = np.sort(np.abs(w)), w.std()
    norm = float(np.linalg.norm(w))
    near_zero = {
        f"near_zero_{share}": float((magnitudes < share * deviation).mean())
        for share in NEAR_ZERO
    }
    return {
        "rms": norm / np.sqrt(w.size),
        **near_zero,
        "gini": _gini(magnitudes),
        "hoyer": _hoyer(magnitudes.sum(), norm, w.size),
    }


def _gini(ascending: np.ndarray) -> float:
    """The Gini index of n magnitudes x_i in ascending order.

    2 (sum of i x_i) / (n sum of x_i) - (n + 1) / n, with i counted from 1.
    """
    size, total = ascending.size, ascending.sum()
    if not total:
        return 0.0  # a matrix of zeros, all alike
    ranks = np.arange(1, size + 1)
    weighted = 2 * (ranks * ascending).sum() / (size * total)
    return float(weighted - (size + 1) / size)


def _hoyer(total: float, norm: float, size: int) -> float:
    """Hoyer's measure of n magnitudes: (sqrt(n) - L1 / L2) / (sqrt(n) - 1).

    Args:
      total: L1, their sum.
      norm: L2, the root of the sum of their squares.
    """
    if not total:
        return 0.0
    return float((np.sqrt(size) - total / norm) / (np.sqrt(size) - 1))


def attention(subject: Subject, tokens_NT: np.ndarray) -> dict[str, Any]:
    """Sparsity of each head's attention, means over the positions that see several keys.

    For weights a over the n keys that a position sees, all without unit:
      `density` is 1 / (n sum a^2), and `concentration` its inverse;
      `entropy` is that of a over ln n;
      `small_relative` is the share of keys with a < 0.1 / n;
      `small_absolute` is the share of keys with a < 1e-3;
      `sink` is a of the first position;
      `gain` is the mean of |sum a v|^2 over the mean of |v|^2: how much of the values'
      energy is left after mixing.

    Returns:
      `heads`, {measure: [L][H]}; `uniform`, the same for uniform attention;
      `probe_length`, tokens of a sequence, without which densities don't compare.
    """
    net, params = subject.net, subject.params

    def measure(rows, states_LBTD):
        by_block = []
        for number in subject.blocks("attention"):
            x_BTD = states_LBTD[number]
            measured = _attention(net, params, x_BTD, number, rows.segments)
            by_block.append(np.asarray(measured))
        return np.array(by_block)

    # The second axis is real and uniform attention.
    means_L2MH = per_sequence(subject, tokens_NT, measure).mean(axis=-1)
    measured_MLH, uniform_MLH = means_L2MH.transpose(1, 2, 0, 3).tolist()
    return {
        "probe_length": tokens_NT.shape[1],
        "heads": dict(zip(ATTENTION, measured_MLH, strict=True)),
        "uniform": dict(zip(ATTENTION, uniform_MLH, strict=True)),
    }


@partial(jax.jit, static_argnums=0)
def _attention(net, params, x_BTD, number, segments_BT):
    """Measures of the real and of uniform attention, [2, M, H, B].

    Args:
      x_BTD: the input of block `number`.
      segments_BT: attention stays within equal numbers; None is one document.
    """
    block = network.BlockAt(net, params, number, number)
    q_BTHK, k_BTJK, v_BTJK = block.queries_keys_values(x_BTD)
    B, T, H, K = q_BTHK.shape
    k_BSHK, v_BSHK = (jnp.repeat(z, H // z.shape[2], axis=2) for z in (k_BTJK, v_BTJK))
    # Query heads that share keys and values are treated as if each had its own.
    energy_BH = jnp.square(v_BSHK).sum(axis=-1).mean(axis=1)
    if segments_BT is None:
        segments_BT = jnp.zeros((B, T), jnp.int32)

    def at_position(query):
        """Measures of one position's attention, zeros where it sees a single key."""
        q_BHK, segment_B, position = query
        # The same set of keys serves real and uniform attention.
        earlier_1S = jnp.arange(T)[None, :] <= position
        visible_BS = earlier_1S & (segments_BT == segment_B[:, None])
        logits_BHS = jnp.einsum("bhk,bshk->bhs", q_BHK, k_BSHK) / jnp.sqrt(K)
        logits_BHS = jnp.where(visible_BS[:, None], logits_BHS, -jnp.inf)
        real_BHS = jax.nn.softmax(logits_BHS, axis=-1)
        uniform_BS = visible_BS / visible_BS.sum(axis=-1, keepdims=True)
        uniform_BHS = jnp.broadcast_to(uniform_BS[:, None], real_BHS.shape)
        uniform_BHS = uniform_BHS.astype(real_BHS.dtype)
        # With a single key all attention is alike.
        counted_B = visible_BS.sum(axis=-1) > 1
        both = jnp.stack(
            [
                _row_measures(real_BHS, visible_BS, v_BSHK),
                _row_measures(uniform_BHS, visible_BS, v_BSHK),
            ]
        )
        return jnp.where(counted_B[None, None, None], both, 0), counted_B

    # A few positions at a time, as [B, H, T, S] would not fit in memory.
    queries = (q_BTHK.swapaxes(0, 1), segments_BT.T, jnp.arange(T))
    sums, counted_TB = jax.lax.map(at_position, queries, batch_size=QUERIES)
    # The mean over the positions that were counted; of none it is 0.
    count_B = jnp.maximum(counted_TB.sum(axis=0), 1)
    means = sums.sum(axis=0) / count_B[None, None, None]
    return means.at[:, ATTENTION.index("gain")].divide(energy_BH.T[None])


def _row_measures(a_BHS, visible_BS, v_BSHK):
    """ATTENTION of one position, [M, H, B].

    The gain is not yet divided by the energy of the values.

    Args:
      a_BHS: attention over all keys, zeros where they are not visible.
    """
    visible_B1S = visible_BS[:, None]
    count_B1 = visible_BS.sum(axis=-1)[:, None]
    mixed_BHK = jnp.einsum("bhs,bshk->bhk", a_BHS, v_BSHK)
    # The first visible key, which is not the first of the sequence in a later document.
    first_BS = visible_BS & (jnp.cumsum(visible_BS, axis=-1) == 1)
    concentration_BH = count_B1 * jnp.square(a_BHS).sum(axis=-1)

    def share_of_keys(condition_BHS):
        return (condition_BHS & visible_B1S).sum(axis=-1) / count_B1

    # In the order of ATTENTION.
    measures = [
        1 / concentration_BH,
        concentration_BH,
        jax.scipy.special.entr(a_BHS).sum(axis=-1) / jnp.log(jnp.maximum(count_B1, 2)),
        share_of_keys(a_BHS < SMALL_SHARE / count_B1[..., None]),
        share_of_keys(a_BHS < SMALL_WEIGHT),
        jnp.where(first_BS[:, None], a_BHS, 0).sum(axis=-1),
        jnp.square(mixed_BHK).sum(axis=-1),
    ]
    return jnp.stack(measures).swapaxes(1, 2)


def activations(subject: Subject, tokens_NT: np.ndarray) -> dict[str, list[float]]:
    """Sparsity of each block's activations, {measure: [L]}, means over tokens, without unit.

    `massive` is the largest magnitude of the residual stream over its median. Of the hidden
    layer h of a dense FFN: `near_zero`, the share below 1 % of its root mean square;
    `hoyer`; and `participation`, (sum h^2)^2 / (F sum h^4), 1 when all are equally large.
    """
    net, params = subject.net, subject.params

    def measure(rows, states_LBTD):
        by_block = []
        for number in subject.blocks("activations"):
            x_BTD, y_BTD = states_LBTD[number], states_LBTD[number + 1]
            measured = _activations(net, params, x_BTD, y_BTD, number, rows.segments)
            by_block.append(np.asarray(measured))
        return np.array(by_block)

    means_LM = per_sequence(subject, tokens_NT, measure).mean(axis=-1)
    measures = ACTIVATIONS[: means_LM.shape[1]]
    return dict(zip(measures, means_LM.T.tolist(), strict=True))


@partial(jax.jit, static_argnums=0)
def _activations(net, params, x_BTD, y_BTD, number, segments_BT):
    """ACTIVATIONS of a block's output and hidden layer, means over tokens, [M, B].

    A mixture of experts has no hidden layer of all tokens, so the output is all there is.
    """
    size_BTD = jnp.abs(y_BTD)
    massive_BT = size_BTD.max(axis=-1) / jnp.median(size_BTD, axis=-1)
    if net.cfg.n_experts:
        return massive_BT.mean(axis=-1)[None]
    block = network.BlockAt(net, params, number, number)
    h_BTF = block.activations(block.with_attention(x_BTD, segments_BT))
    F = h_BTF.shape[-1]
    square_BTF, root = jnp.square(h_BTF), jnp.sqrt(F)
    energy_BT = square_BTF.sum(axis=-1)
    # Relative to the token's own size, as that differs widely between tokens.
    small_BTF = jnp.abs(h_BTF) < NEAR_ZERO[0] * jnp.sqrt(
        square_BTF.mean(axis=-1, keepdims=True)
    )
    near_zero_BT = small_BTF.mean(axis=-1)
    norms_BT = jnp.abs(h_BTF).sum(axis=-1) / jnp.sqrt(energy_BT)  # L1 / L2
    hoyer_BT = (root - norms_BT) / (root - 1)
    participation_BT = jnp.square(energy_BT) / (F * jnp.square(square_BTF).sum(axis=-1))
    measures = (massive_BT, near_zero_BT, hoyer_BT, participation_BT)
    return jnp.stack([measure_BT.mean(axis=-1) for measure_BT in measures])


def experts(subject: Subject, tokens_NT: np.ndarray) -> dict[str, list[list[float]]]:
    """What each expert of each block is used for, {measure: [L][E]}, without unit.

    `utilisation` is the share of all choices, 1/E when even. `importance` is (loss without
    the expert - loss) / loss, the gates left as they are.
    """
    net, params, layers = subject.net, subject.params, subject.cfg.n_layers

    def measure(rows, states_LBTD):
        shares, losses = [], []
        for number in subject.blocks("experts"):
            x_BTD = states_LBTD[number]
            share_EB, _ = _usage(net, params, x_BTD, number, rows.segments)
            shares.append(np.asarray(share_EB))
            losses_EB = _without_experts(net, params, x_BTD, number, rows)
            losses.append(np.asarray(losses_EB))
        # Repeated for each expert, as one array holds all three.
        intact_B = network.tail_losses(net, params, states_LBTD[-1], layers, rows)
        intact_LEB = np.broadcast_to(intact_B, np.shape(losses))
        return np.array([shares, losses, intact_LEB])

    # Losses are averaged before the ratio is taken.
    means = per_sequence(subject, tokens_NT, measure).mean(axis=-1)
    utilisation_LE, loss_LE, intact_LE = means
    return {
        "utilisation": utilisation_LE.tolist(),
        "importance": (loss_LE / intact_LE - 1).tolist(),
    }


def gate_squares(subject: Subject, tokens_NT: np.ndarray) -> list[float]:
    """Mean over tokens of the sum of squared gates, [L].

    It sets the variance of what a mixture of experts adds.
    """
    net, params = subject.net, subject.params

    def measure(rows, states_LBTD):
        squares = []
        for number in range(subject.cfg.n_layers):
            x_BTD = states_LBTD[number]
            _, squares_B = _usage(net, params, x_BTD, number, rows.segments)
            squares.append(np.asarray(squares_B))
        return np.array(squares)

    return per_sequence(subject, tokens_NT, measure).mean(axis=-1).tolist()


@partial(jax.jit, static_argnums=0)
def _usage(net, params, x_BTD, number, segments_BT):
    """How the router of a block uses its experts in each row.

    Returns:
      The share of the row's choices that each expert gets, [E, B], and the mean over tokens
      of the sum of squared gates, [B].
    """
    block = network.BlockAt(net, params, number, number)
    u_BTD = block.with_attention(x_BTD, segments_BT)

    # Row by row, as the router's statistics are of all tokens that it gets.
    def row(u_TD):
        stats = block.routing(u_TD[None])
        counts_E = stats["router/counts"]
        return counts_E / counts_E.sum(), stats["router/gate_square_sum"]

    share_BE, squares_B = jax.lax.map(row, u_BTD)
    return share_BE.T, squares_B


@partial(jax.jit, static_argnums=0)
def _without_experts(net, params, x_BTD, number, rows):
    """The losses [E, B] without each expert of a block, whose input is `x_BTD`."""

    # One expert after the other, as each needs a copy of the block's parameters.
    def without(expert):
        block = network.BlockAt(net, params, number, number, silent=expert)
        y_BTD = block.output(x_BTD, rows.segments)
        return network.tail_losses(net, params, y_BTD, number + 1, rows)

    return jax.lax.map(without, jnp.arange(net.cfg.n_experts))
