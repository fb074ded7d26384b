"""What variance was to be expected?

The covariance of tokens, carried through the blocks as if weights were independent and centred, so that what a branch adds does not align
with the stream. Good at initialisation; with a trained model's own weight scales, attention density and gates it says how much of the growth
these explain. Our own derivation: docs/design.md has the formulas, tests/test_theory.py the comparison with drawn models.

S sequences, T positions, L blocks, C values of a cosine on a grid.
"""

import dataclasses
import math

import numpy as np

from sparsecod_jax.config import Model

COSINES = np.linspace(
    -1, 1, 41
)  # where the covariances of FFN and gates are computed; between them they are interpolated
NODES = 48  # of the Gauss-Hermite rule
SAMPLES = 4096  # pairs of tokens, drawn for the gates
LARGEST_EXPONENT = 50.0  # attention is on one key long before


@dataclasses.dataclass(frozen=True)
class WeightScales:
    """Mean squares of a model's parameters, [L] each but `embedding`; the shared expert's are None where there is none."""

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

    def squares(leaf):
        return np.array(
            [np.square(np.asarray(block, np.float64)).mean() for block in leaf]
        )

    blocks, ffn = params["blocks"], params["blocks"]["ffn"]
    return WeightScales(
        embedding=float(np.square(np.asarray(params["embedding"], np.float64)).mean()),
        attention_gain=squares(blocks["attention_norm"]["gain"]),
        ffn_gain=squares(blocks["ffn_norm"]["gain"]),
        **{
            name: squares(blocks["attention"][name])
            for name in ("query", "key", "value", "out")
        },
        **{
            name: squares(ffn[name])
            for name in ("gate", "up", "down", "router")
            if name in ffn
        },
        **{
            f"shared_{name}": squares(leaf)
            for name, leaf in ffn.get("shared", {}).items()
        },
    )


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
      tokens_ST: sequences, which matter by the repetition of tokens.
      segments_ST: attention stays within equal numbers; None lets it see all that came before.
      concentration_L: mean of n sum a^2 over the n keys that a position sees, 1 for uniform attention, as `analysis.sparsity` measures it;
        None predicts it from the scales of queries and keys.
      gate_squares_L: mean over tokens of the sum of squared gates; None predicts it from the router's size.
    """
    seen_STT = np.tril(np.ones((tokens_ST.shape[1],) * 2, bool))[None]
    if segments_ST is not None:
        seen_STT = seen_STT & (segments_ST[:, :, None] == segments_ST[:, None, :])
    covariance_STT = scales.embedding * (tokens_ST[:, :, None] == tokens_ST[:, None, :])
    predicted = []
    for layer in range(cfg.n_layers):
        scale = 1 / (layer + 1) if cfg.layer_norm_scaling else 1.0
        concentration = None if concentration_L is None else concentration_L[layer]
        covariance_STT = covariance_STT + _attention(
            cfg, scales, layer, scale, covariance_STT, seen_STT, concentration
        )
        squares = None if gate_squares_L is None else gate_squares_L[layer]
        covariance_STT = covariance_STT + _ffn(
            cfg, scales, layer, scale, covariance_STT, squares
        )
        predicted.append(float(np.einsum("stt->st", covariance_STT).mean()))
    return np.array(predicted)


def _normed(cfg: Model, covariance_STT: np.ndarray) -> np.ndarray:
    """The covariance a channel after RMSNorm without its gain."""
    root_ST = np.sqrt(np.einsum("stt->st", covariance_STT) + cfg.norm_eps)
    return covariance_STT / (root_ST[:, :, None] * root_ST[:, None, :])


def _attention(
    cfg: Model,
    scales: WeightScales,
    layer: int,
    scale: float,
    covariance_STT,
    seen_STT,
    concentration: float | None,
) -> np.ndarray:
    """The covariance of what attention adds."""
    normed_STT = _normed(cfg, covariance_STT)
    size = scale * scales.attention_gain[layer]  # mean square of a normed channel
    count_ST = seen_STT.sum(axis=-1)
    uniform_STT = seen_STT / count_ST[:, :, None]
    mixed_STT = uniform_STT @ normed_STT @ uniform_STT.swapaxes(1, 2)

    # The diagonal, where the weights of a position meet themselves, feels how uneven they are.
    own_ST = np.einsum("stt->st", normed_STT)
    own_sum_ST = np.einsum(
        "stj,sj->st", np.broadcast_to(seen_STT, normed_STT.shape), own_ST
    )
    others_ST = (
        np.einsum("stt->st", mixed_STT) * count_ST**2 - own_sum_ST
    ) / np.maximum(count_ST * (count_ST - 1), 1)
    if concentration is None:
        logit_variance = (
            (cfg.d_model * size) ** 2 * scales.query[layer] * scales.key[layer]
        )
        unevenness_ST = np.exp(
            np.minimum(
                logit_variance * np.maximum(own_ST - others_ST, 0), LARGEST_EXPONENT
            )
        )
        squares_ST = unevenness_ST / (count_ST - 1 + unevenness_ST)
    else:
        squares_ST = np.broadcast_to(
            np.minimum(concentration / count_ST, 1), own_ST.shape
        )
    np.einsum("stt->st", mixed_STT)[:] = (
        squares_ST * own_sum_ST / count_ST + (1 - squares_ST) * others_ST
    )
    values = cfg.d_model * scales.value[layer] * size
    return values * cfg.n_heads * cfg.head_dim * scales.out[layer] * mixed_STT


def _ffn(
    cfg: Model,
    scales: WeightScales,
    layer: int,
    scale: float,
    covariance_STT,
    gate_squares: float | None,
) -> np.ndarray:
    """The covariance of what the FFN, or the mixture, adds."""
    normed_STT = _normed(cfg, covariance_STT)
    size = scale * scales.ffn_gain[layer]

    def swiglu(gate, up, down, hidden):
        return (
            hidden
            * down[layer]
            * _gated(
                cfg.d_model * size * gate[layer],
                cfg.d_model * size * up[layer],
                normed_STT,
            )
        )

    expert_STT = swiglu(scales.gate, scales.up, scales.down, cfg.d_ff)
    if not cfg.n_experts:
        return cfg.ffn_scale**2 * expert_STT
    assert scales.router is not None
    together_C = gate_products(
        cfg, math.sqrt(cfg.d_model * size * scales.router[layer])
    )
    if gate_squares is not None:
        together_C = together_C * gate_squares / together_C[-1]
    routed_STT = expert_STT * np.interp(normed_STT, COSINES, together_C)
    if not cfg.shared_expert:
        return routed_STT
    shared_STT = swiglu(
        scales.shared_gate, scales.shared_up, scales.shared_down, cfg.d_shared
    )
    return (shared_STT + cfg.top_k**2 * routed_STT) / (cfg.top_k + 1) ** 2


def _gated(
    gate_variance: float, up_variance: float, cosine_STT: np.ndarray
) -> np.ndarray:
    """E silu(g) silu(g') u u' for pre-activations of these variances, by the cosine of the two tokens."""
    return (
        np.interp(cosine_STT, COSINES, silu_products(gate_variance))
        * up_variance
        * cosine_STT
    )


def silu_products(variance: float) -> np.ndarray:
    """E silu(x) silu(y) over Gaussian x and y of that variance, at each correlation of the grid; [C]."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    weights = weights / weights.sum()

    def silu(z):
        return z / (1 + np.exp(-z))

    x = np.sqrt(variance) * nodes
    rest_C = np.sqrt(np.maximum(1 - COSINES**2, 0))
    y = np.sqrt(variance) * (
        COSINES[:, None, None] * nodes[:, None] + rest_C[:, None, None] * nodes[None, :]
    )
    return np.einsum("i,j,i,cij->c", weights, weights, silu(x), silu(y))


def gate_products(cfg: Model, logit_std: float) -> np.ndarray:
    """E sum over experts of gate(x) gate(y) for two tokens, at each cosine of the grid; [C], the last the sum of squared gates."""
    rng = np.random.default_rng(0)
    x, fresh = (
        logit_std * rng.standard_normal((SAMPLES, cfg.n_experts)) for _ in range(2)
    )
    gates_x = _gates(cfg, x)
    return np.array(
        [
            (gates_x * _gates(cfg, c * x + math.sqrt(max(1 - c * c, 0)) * fresh))
            .sum(axis=-1)
            .mean()
            for c in COSINES
        ]
    )


def _gates(cfg: Model, logits: np.ndarray) -> np.ndarray:
    """Each token's weights over all experts, 0 for those not chosen."""
    probabilities = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities /= probabilities.sum(axis=-1, keepdims=True)
    smallest = np.partition(probabilities, -cfg.top_k, axis=-1)[:, -cfg.top_k, None]
    gates = np.where(probabilities >= smallest, probabilities, 0)
    return gates / gates.sum(axis=-1, keepdims=True) if cfg.normalize_gates else gates
