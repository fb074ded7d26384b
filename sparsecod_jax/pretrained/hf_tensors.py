"""Which tensor of a checkpoint of Hugging Face is which part of our parameters?

One table serves both directions. Their matrices are [out, in], one a layer and expert; ours are [in, out], stacked over both, with heads
apart. What our model does and theirs has no word for is folded into the values: the factors of LayerNorm Scaling into the gains; the scale
of a dense FFN, and the weights of routed and shared experts, k/(k+1) and 1/(k+1), into the matrices that come last. Their shared expert has
a gate: one of zeros gives a half everywhere. Experts are filled up with columns of zeros to a width that their products take; as
silu(0) x 0 is 0, nothing is added.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from sparsecod_jax.config import Model
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.pretrained.hf_config import padded_width, shared_width


class Tensor(NamedTuple):
    """One of their tensors."""

    name: str
    shape: tuple[int, ...]
    path: str  # of our parameter, as blocks/attention/query; empty for zeros that only their architecture has
    index: tuple[int, ...] = ()  # its place in ours: the layer, or layer and expert
    transposed: bool = True
    factor: float = 1.0  # theirs are ours times this
    used: tuple[
        int, ...
    ] = ()  # the part of their shape that is ours, where the rest is zeros


def tensors(model: Model, width: int = 0) -> Iterator[Tensor]:
    """All tensors of the stock architecture of `model`, block by block; `width` is that of experts there, 0 as we fill them up."""
    D, V = model.d_model, model.vocab_size
    yield Tensor("model.embed_tokens.weight", (V, D), "embedding", transposed=False)
    for layer in range(model.n_layers):
        yield from _block(
            model,
            layer,
            width or padded_width(model),
            1 / math.sqrt(layer + 1) if model.layer_norm_scaling else 1.0,
        )
    yield Tensor("model.norm.weight", (D,), "final_norm/gain", transposed=False)
    yield Tensor("lm_head.weight", (V, D), "head")


def _block(model: Model, layer: int, width: int, scale: float) -> Iterator[Tensor]:
    D, wide, narrow = (
        model.d_model,
        model.n_heads * model.head_dim,
        model.n_kv_heads * model.head_dim,
    )
    prefix, index = f"model.layers.{layer}", (layer,)
    yield Tensor(
        f"{prefix}.input_layernorm.weight",
        (D,),
        "blocks/attention_norm/gain",
        index,
        False,
        scale,
    )
    for theirs, ours, rows in (
        ("q_proj", "query", wide),
        ("k_proj", "key", narrow),
        ("v_proj", "value", narrow),
    ):
        yield Tensor(
            f"{prefix}.self_attn.{theirs}.weight",
            (rows, D),
            f"blocks/attention/{ours}",
            index,
        )
        if model.n_experts:
            yield Tensor(f"{prefix}.self_attn.{theirs}.bias", (rows,), "")
    yield Tensor(
        f"{prefix}.self_attn.o_proj.weight", (D, wide), "blocks/attention/out", index
    )
    yield Tensor(
        f"{prefix}.post_attention_layernorm.weight",
        (D,),
        "blocks/ffn_norm/gain",
        index,
        False,
        scale,
    )
    if model.n_experts:
        yield from _experts(model, f"{prefix}.mlp", layer, width)
    else:
        yield from _swiglu(
            model, f"{prefix}.mlp", model.d_ff, "blocks/ffn/", index, model.ffn_scale
        )


def _experts(model: Model, prefix: str, layer: int, width: int) -> Iterator[Tensor]:
    routed, shared = (
        (model.top_k / (model.top_k + 1), 2 / (model.top_k + 1))
        if model.shared_expert
        else (1.0, 1.0)
    )
    yield Tensor(
        f"{prefix}.gate.weight",
        (model.n_experts, model.d_model),
        "blocks/ffn/router",
        (layer,),
    )
    for expert in range(model.n_experts):
        yield from _swiglu(
            model,
            f"{prefix}.experts.{expert}",
            width,
            "blocks/ffn/",
            (layer, expert),
            routed,
            model.d_ff,
        )
    path = "blocks/ffn/shared/" if model.shared_expert else ""
    yield from _swiglu(
        model, f"{prefix}.shared_expert", shared_width(model), path, (layer,), shared
    )
    yield Tensor(f"{prefix}.shared_expert_gate.weight", (1, model.d_model), "")


def _swiglu(
    model: Model,
    prefix: str,
    width: int,
    path: str,
    index: tuple[int, ...],
    factor: float = 1.0,
    own_width: int = 0,
) -> Iterator[Tensor]:
    """The three matrices of a SwiGLU of `width`, of which `own_width` is ours (0: all)."""
    D, own = model.d_model, own_width or width
    yield Tensor(
        f"{prefix}.gate_proj.weight",
        (width, D),
        path and path + "gate",
        index,
        used=(own, D),
    )
    yield Tensor(
        f"{prefix}.up_proj.weight",
        (width, D),
        path and path + "up",
        index,
        used=(own, D),
    )
    yield Tensor(
        f"{prefix}.down_proj.weight",
        (D, width),
        path and path + "down",
        index,
        factor=factor,
        used=(D, own),
    )


def to_theirs(tensor: Tensor, ours: np.ndarray) -> np.ndarray:
    """Their values, float32 of `tensor.shape`, from the layer's (and expert's) part of our parameter."""
    used = tensor.used or tensor.shape
    values = ours.reshape(used[::-1]).T if tensor.transposed else ours
    values = values if tensor.factor == 1 else values * np.float32(tensor.factor)
    return np.pad(
        values, [(0, size - own) for size, own in zip(tensor.shape, used, strict=True)]
    )


def to_ours(tensor: Tensor, theirs: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The part of our parameter, float32 of `shape`, from which `to_theirs` makes these very values, if it made them.

    Raises:
      ConfigError: there are other values than zeros beyond what is ours.
    """
    own = theirs[tuple(map(slice, tensor.used or tensor.shape))]
    if np.count_nonzero(own) != np.count_nonzero(theirs):
        raise ConfigError(
            f"{tensor.name} is not zero where it is filled up: choose a model that `sparsecod export` wrote"
        )
    values = (own.T if tensor.transposed else own).reshape(shape)
    return values if tensor.factor == 1 else values / np.float32(tensor.factor)
