"""How big is it? Parameters and FLOPs from a config alone."""

import dataclasses

from sparsecod_jax.config import Model

FLOPS_CONVENTION = "6*(activated - input embedding) + 6*L*T*n_heads*head_dim per token: forward and backward, causal half, no remat"


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
    ffn = (
        model.n_experts * (swiglu + d) + 3 * d * model.d_shared
        if model.n_experts
        else swiglu
    )
    rest = model.n_layers * (attention + ffn + 2 * d) + d + d * model.vocab_size
    total = rest + model.vocab_size * d
    idle = model.n_layers * (model.n_experts - model.top_k) * swiglu
    return Counts(total=total, without_input_embedding=rest, activated=total - idle)


def flops_per_token(model: Model, seq_len: int) -> float:
    """Training FLOPs a token, by FLOPS_CONVENTION."""
    attention = 6 * model.n_layers * seq_len * model.n_heads * model.head_dim
    return (
        6.0 * (parameters(model).activated - model.vocab_size * model.d_model)
        + attention
    )
