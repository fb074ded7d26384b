"""How big is it? Parameters and FLOPs from a config alone."""

import dataclasses
import re

from sparsecod_jax.config import Model

FLOPS_CONVENTION = "6*(activated - input embedding) + 6*L*T*n_heads*head_dim per token: forward and backward, causal half, no remat"

# Dense bf16 peak a device in FLOP/s, by a part of jax's device kind; never the figure with structured sparsity.
PEAK_FLOPS = {
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6": 918e12,
}


@dataclasses.dataclass(frozen=True)
class Counts:
    """Numbers of parameters."""

    total: int
    without_input_embedding: int
    activated: int  # total, without the experts that a token is not sent to


def parameters(model: Model) -> Counts:
    """Parameter counts of `model`, as the paper counts them."""
    d, heads, kv, size = model.d_model, model.n_heads, model.n_kv_heads, model.head_dim
    attention = 2 * d * heads * size + 2 * d * kv * size
    swiglu = 3 * d * model.d_ff
    ffn = model.n_experts * (swiglu + d) + 3 * d * model.d_shared if model.n_experts else swiglu
    rest = model.n_layers * (attention + ffn + 2 * d) + d + d * model.vocab_size
    total = rest + model.vocab_size * d
    idle = model.n_layers * (model.n_experts - model.top_k) * swiglu
    return Counts(total=total, without_input_embedding=rest, activated=total - idle)


def flops_per_token(model: Model, seq_len: int) -> float:
    """Training FLOPs a token, by FLOPS_CONVENTION."""
    attention = 6 * model.n_layers * seq_len * model.n_heads * model.head_dim
    return 6.0 * (parameters(model).activated - model.vocab_size * model.d_model) + attention


def peak_flops(device_kind: str) -> float | None:
    """Peak dense bf16 FLOP/s of one device, None when the kind is unknown: an MFU is then not stated."""
    found = (peak for name, peak in PEAK_FLOPS.items() if re.search(rf"{name}(?!\d)", device_kind, re.IGNORECASE))  # an A1000 is no A100
    return next(found, None)
