"""How big is a model? Parameters and FLOPs from a config alone."""

import dataclasses

from sparsecod_jax.config import Model

FLOPS_CONVENTION = (
    "6*(activated - input embedding) + 6*L*T*n_heads*head_dim per token: "
    "forward and backward, causal half, no remat"
)


@dataclasses.dataclass(frozen=True)
class Counts:
    """Numbers of parameters."""

    total: int
    without_input_embedding: int
    activated: int  # total, without the experts that a token is not sent to


def parameters(model: Model) -> Counts:
    """Parameter counts of `model`, as the paper counts them."""
    d, size = model.d_model, model.head_dim
    queries_and_output = 2 * d * model.n_heads * size
    keys_and_values = 2 * d * model.n_kv_heads * size
    swiglu = 3 * d * model.d_ff
    if model.n_experts:
        routed = model.n_experts * (swiglu + d)  # with its row of the router
        ffn = routed + 3 * d * model.d_shared
    else:
        ffn = swiglu
    norms = model.norms_per_block * d
    block = queries_and_output + keys_and_values + ffn + norms
    embedding = model.vocab_size * d
    final_norm_and_head = d + embedding
    rest = model.n_layers * block + final_norm_and_head
    total = rest + embedding
    idle = model.n_layers * (model.n_experts - model.top_k) * swiglu
    return Counts(total=total, without_input_embedding=rest, activated=total - idle)


def flops_per_token(model: Model, seq_len: int) -> float:
    """Training FLOPs per token, by FLOPS_CONVENTION."""
    embedding = model.vocab_size * model.d_model
    products = 6.0 * (parameters(model).activated - embedding)
    attention = 6 * model.n_layers * seq_len * model.n_heads * model.head_dim
    return products + attention
