"""What variance was to be expected?

Variance theory: the covariance of tokens, carried through the blocks as if weights were
independent and centred, so that what a branch adds does not align with the residual stream.
Good at initialisation; with a trained model's own weight scales, attention concentration and
gates it predicts how much of the growth these explain. Our own derivation: docs/design.md
has the formulas, tests/analysis/test_theory.py the comparison with drawn models.

S sequences, T positions, L blocks, C values of a cosine on a grid, M pairs of tokens, E
experts. A covariance [S, T, T] is that of two tokens of a sequence, per channel, in the unit
of the residual stream squared.
"""

import dataclasses
import math

import numpy as np

from sparsecod_jax.config import Model

# Added config fields that the theory accounts for.
EXPLAINED: tuple[str, ...] = ()
# The covariances of FFN and gates are computed at these cosines, and interpolated between.
COSINES = np.linspace(-1, 1, 41)
NODES = 48  # of the Gauss-Hermite rule
SAMPLES = 4096  # pairs of tokens, drawn for the gates
LARGEST_EXPONENT = 50.0  # attention is on one key long before


@dataclasses.dataclass(frozen=True)
class WeightScales:
    """Mean squares of a model's parameters, [L] each but `embedding`.

    Those of router and shared expert are None where there is none.
    """

    embedding: float
    attention_gain: np.ndarray
    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    out: np.ndarray
    ffn_gain: np.ndarray
    gate: np.ndarray
    up: np.ndarray
    down: np.ndarray
    router: np.ndarray | None = None
    shared_gate: np.ndarray | None = None
    shared_up: np.ndarray | None = None
    shared_down: np.ndarray | None = None


def measured_scales(params) -> WeightScales:
    """Those of real parameters, a tree of arrays stacked over blocks."""
    blocks, ffn = params["blocks"], params["blocks"]["ffn"]
    scales = {
        "attention_gain": _mean_squares(blocks["attention_norm"]["gain"]),
        "ffn_gain": _mean_squares(blocks["ffn_norm"]["gain"]),
    }
    for name in ("query", "key", "value", "out"):
        scales[name] = _mean_squares(blocks["attention"][name])
    for name in ("gate", "up", "down", "router"):
        if name in ffn:
            scales[name] = _mean_squares(ffn[name])
    for name, stacked in ffn.get("shared", {}).items():
        scales[f"shared_{name}"] = _mean_squares(stacked)
    embedding = np.asarray(params["embedding"], np.float64)
    return WeightScales(embedding=float(np.square(embedding).mean()), **scales)


def _mean_squares(stacked) -> np.ndarray:
    """Of each block's part of a parameter, [L]."""
    parts = (np.asarray(part, np.float64) for part in stacked)
    return np.array([np.square(part).mean() for part in parts])


def residual_variance(
    cfg: Model,
    scales: WeightScales,
    tokens_ST: np.ndarray,
    segments_ST: np.ndarray | None = None,
    concentration_L: np.ndarray | None = None,
    gate_squares_L: np.ndarray | None = None,
) -> np.ndarray:
    """The predicted `variance/residual` of every block, [L].

    Args:
      cfg: of the model.
      scales: of its weights, drawn or measured.
      tokens_ST: sequences, which matter by the repetition of tokens.
      segments_ST: attention stays within equal numbers; None lets it reach all earlier
        positions.
      concentration_L: mean of n sum a^2 over the n keys that a position sees, 1 for uniform
        attention, as `analysis.sparsity` measures it; None predicts it from the scales of
        queries and keys.
      gate_squares_L: mean over tokens of the sum of squared gates; None predicts it from
        the router's scale.
    """
    length = tokens_ST.shape[1]
    visible_STT = np.tril(np.ones((length, length), bool))[None]
    if segments_ST is not None:
        same_document_STT = segments_ST[:, :, None] == segments_ST[:, None, :]
        visible_STT = visible_STT & same_document_STT
    # Embeddings are independent, so two positions covary where they hold the same token.
    same_token_STT = tokens_ST[:, :, None] == tokens_ST[:, None, :]
    covariance_STT = scales.embedding * same_token_STT
    predicted = []
    for layer in range(cfg.n_layers):
        concentration = gate_squares = None
        if concentration_L is not None:
            concentration = concentration_L[layer]
        if gate_squares_L is not None:
            gate_squares = gate_squares_L[layer]
        # A branch does not align with what it is added to, so covariances add.
        covariance_STT = covariance_STT + _attention(
            cfg, scales, layer, covariance_STT, visible_STT, concentration
        )
        covariance_STT = covariance_STT + _ffn(
            cfg, scales, layer, covariance_STT, gate_squares
        )
        predicted.append(float(_diagonal(covariance_STT).mean()))
    return np.array(predicted)


def _diagonal(matrix_STT: np.ndarray) -> np.ndarray:
    """A view of the entries of each position with itself, [S, T]; writing to it writes there."""
    return np.einsum("stt->st", matrix_STT)


def _cosines(cfg: Model, covariance_STT: np.ndarray) -> np.ndarray:
    """The covariance per channel after RMSNorm without its gain: cosines of the tokens."""
    root_ST = np.sqrt(_diagonal(covariance_STT) + cfg.norm_eps)
    return covariance_STT / (root_ST[:, :, None] * root_ST[:, None, :])


def _norm_square(cfg: Model, gain_L: np.ndarray, layer: int) -> float:
    """Mean square of a channel after a norm: the gain's, times LayerNorm Scaling's."""
    scale = 1 / (layer + 1) if cfg.layer_norm_scaling else 1.0
    return scale * gain_L[layer]


def _attention(
    cfg: Model,
    scales: WeightScales,
    layer: int,
    covariance_STT: np.ndarray,
    visible_STT: np.ndarray,
    concentration: float | None,
) -> np.ndarray:
    """The covariance of what attention adds, [S, T, T].

    Args:
      covariance_STT: of the residual stream that the branch reads.
      visible_STT: which keys (last axis) each position sees.
      concentration: n sum a^2, measured; None predicts it.
    """
    # After the norm a channel of two tokens covaries by their cosine, times the square.
    cosine_STT = _cosines(cfg, covariance_STT)
    square = _norm_square(cfg, scales.attention_gain, layer)
    count_ST = visible_STT.sum(axis=-1)
    # Two different positions mix with weights that are independent of each other, so their
    # covariance is as if attention were uniform: the mean over pairs of keys.
    uniform_STT = visible_STT / count_ST[:, :, None]
    mixed_STT = uniform_STT @ cosine_STT @ uniform_STT.swapaxes(1, 2)

    # On the diagonal the weights of a position meet themselves, and it matters how uneven
    # they are: sum a^2 weighs the keys' own variances, the rest the pairs of two keys.
    own_ST = _diagonal(cosine_STT)
    own_sum_ST = np.einsum(
        "stj,sj->st", np.broadcast_to(visible_STT, cosine_STT.shape), own_ST
    )
    # The mean cosine over pairs of two different keys: all pairs, less each key with itself.
    pairs_ST = np.maximum(count_ST * (count_ST - 1), 1)
    others_ST = (_diagonal(mixed_STT) * count_ST**2 - own_sum_ST) / pairs_ST
    if concentration is None:
        # What keys have in common shifts all logits alike and drops out of the softmax.
        spread_ST = np.maximum(own_ST - others_ST, 0)
        squares_ST = _attention_squares(cfg, scales, layer, spread_ST, count_ST)
    else:
        # sum a^2 from n sum a^2; it can't exceed 1.
        squares_ST = np.minimum(concentration / count_ST, 1)
        squares_ST = np.broadcast_to(squares_ST, own_ST.shape)
    _diagonal(mixed_STT)[:] = (
        squares_ST * own_sum_ST / count_ST + (1 - squares_ST) * others_ST
    )
    # Then the value and output matrices, over D, and over H heads of width K.
    values = cfg.d_model * scales.value[layer] * square
    return values * cfg.n_heads * cfg.head_dim * scales.out[layer] * mixed_STT


def _attention_squares(
    cfg: Model,
    scales: WeightScales,
    layer: int,
    spread_ST: np.ndarray,
    count_ST: np.ndarray,
) -> np.ndarray:
    """The predicted sum of a^2 over the keys that each position sees, [S, T].

    Args:
      spread_ST: cosine of a key with itself, less the mean cosine with the others.
      count_ST: n, the keys that a position sees.
    """
    # Logits are Gaussian: this is the variance of those of independent keys.
    square = _norm_square(cfg, scales.attention_gain, layer)
    logit_variance = (
        (cfg.d_model * square) ** 2 * scales.query[layer] * scales.key[layer]
    )
    # Before they are normalised, weights are log-normal: E w^2 / (E w)^2 = e^variance.
    exponent_ST = np.minimum(logit_variance * spread_ST, LARGEST_EXPONENT)
    unevenness_ST = np.exp(exponent_ST)
    # 1/n where weights are even, 1 where they are on one key.
    return unevenness_ST / (count_ST - 1 + unevenness_ST)


def _ffn(
    cfg: Model,
    scales: WeightScales,
    layer: int,
    covariance_STT: np.ndarray,
    gate_squares: float | None,
) -> np.ndarray:
    """The covariance of what the FFN, or the mixture of experts, adds, [S, T, T].

    Args:
      covariance_STT: of the residual stream that the branch reads.
      gate_squares: mean sum of squared gates, measured; None predicts it.
    """
    cosine_STT = _cosines(cfg, covariance_STT)
    square = _norm_square(cfg, scales.ffn_gain, layer)

    def swiglu(gate_L, up_L, down_L, hidden):
        """hidden * s_down^2 * E silu(g) silu(g') u u', by the cosine of the two tokens."""
        gate_variance = cfg.d_model * square * gate_L[layer]
        up_variance = cfg.d_model * square * up_L[layer]
        silu_STT = np.interp(cosine_STT, COSINES, silu_products(gate_variance))
        return hidden * down_L[layer] * (silu_STT * up_variance * cosine_STT)

    # One expert, or the whole FFN, with its gate at 1.
    expert_STT = swiglu(scales.gate, scales.up, scales.down, cfg.d_ff)
    if not cfg.n_experts:
        return cfg.ffn_scale**2 * expert_STT
    assert scales.router is not None
    # Experts are independent, so two tokens covary through those that both of them chose.
    logit_std = math.sqrt(cfg.d_model * square * scales.router[layer])
    products_C = gate_products(cfg, logit_std)
    # Measured gates replace the size of the products; how they fall with the cosine stays
    # predicted.
    if gate_squares is not None:
        products_C = products_C * gate_squares / products_C[-1]
    routed_STT = expert_STT * np.interp(cosine_STT, COSINES, products_C)
    if not cfg.shared_expert:
        return routed_STT
    shared_STT = swiglu(
        scales.shared_gate, scales.shared_up, scales.shared_down, cfg.d_shared
    )
    # The branch is (shared + k routed) / (k + 1).
    return (shared_STT + cfg.top_k**2 * routed_STT) / (cfg.top_k + 1) ** 2


def silu_products(variance: float) -> np.ndarray:
    """E silu(x) silu(y) of Gaussian x and y, at each correlation of COSINES, [C].

    By the Gauss-Hermite rule in two independent variables.

    Args:
      variance: of x and of y.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    weights = weights / weights.sum()  # so that they give expectations

    def silu(z):
        return z / (1 + np.exp(-z))

    # y = c x + sqrt(1 - c^2) x', with x' independent of x.
    x = np.sqrt(variance) * nodes
    rest_C = np.sqrt(np.maximum(1 - COSINES**2, 0))
    common = COSINES[:, None, None] * nodes[:, None]
    fresh = rest_C[:, None, None] * nodes[None, :]
    y = np.sqrt(variance) * (common + fresh)
    return np.einsum("i,j,i,cij->c", weights, weights, silu(x), silu(y))


def gate_products(cfg: Model, logit_std: float) -> np.ndarray:
    """E sum over experts of gate(x) gate(y) for two tokens, at each of COSINES, [C].

    By drawing router logits. The last value, at cosine 1, is the sum of squared gates.

    Args:
      logit_std: standard deviation of a router logit.
    """
    rng = np.random.default_rng(0)
    # Logits of two tokens have the tokens' cosine as their correlation. The same draws serve
    # all cosines, so that the curve is smooth.
    x_ME = logit_std * rng.standard_normal((SAMPLES, cfg.n_experts))
    fresh_ME = logit_std * rng.standard_normal((SAMPLES, cfg.n_experts))
    gates_ME = _gates(cfg, x_ME)
    products = []
    for cosine in COSINES:
        rest = math.sqrt(max(1 - cosine * cosine, 0))
        y_ME = cosine * x_ME + rest * fresh_ME
        product_M = (gates_ME * _gates(cfg, y_ME)).sum(axis=-1)
        products.append(product_M.mean())
    return np.array(products)


def _gates(cfg: Model, logits_ME: np.ndarray) -> np.ndarray:
    """Each token's weights over all experts, 0 for those not chosen, [M, E].

    As the router of `model.router` does: softmax over all, then the `top_k` largest.
    """
    shares_ME = np.exp(logits_ME - logits_ME.max(axis=-1, keepdims=True))
    shares_ME /= shares_ME.sum(axis=-1, keepdims=True)
    smallest_M1 = np.partition(shares_ME, -cfg.top_k, axis=-1)[:, -cfg.top_k, None]
    gates_ME = np.where(shares_ME >= smallest_M1, shares_ME, 0)
    if not cfg.normalize_gates:
        return gates_ME
    return gates_ME / gates_ME.sum(axis=-1, keepdims=True)
