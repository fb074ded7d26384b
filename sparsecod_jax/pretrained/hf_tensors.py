"""Which tensor of a Hugging Face checkpoint is which part of our parameters?

Tensor names of checkpoints: one table serves both directions. Their matrices are [out, in],
one per layer and expert; ours are [in, out], stacked over both, with heads apart.

What our model does and theirs has no setting for is folded into the values:
- the factors of LayerNorm Scaling into the gains;
- the scale of a dense FFN, and the weights of routed and shared experts, k/(k+1) and
  1/(k+1), into the matrices that come last. Their shared expert has a gate: one of zeros
  gives a half everywhere, so that ours is doubled.
Experts are filled up with columns of zeros to a width that their products take; as
silu(0) x 0 is 0, nothing is added.

D width, V vocabulary.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from sparsecod_jax.config import Model
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.pretrained.hf_config import padded_width, shared_width


class Tensor(NamedTuple):
    """One of their tensors.

    Attributes:
      path: of our parameter, as blocks/attention/query; empty for zeros that only their
        architecture has.
      part: of ours that it holds: the layer, or layer and expert.
      factor: theirs are ours times this.
      used: the part of their shape that is ours, where the rest is zeros; empty for all.
    """

    name: str
    shape: tuple[int, ...]
    path: str
    part: tuple[int, ...] = ()
    transposed: bool = True
    factor: float = 1.0
    used: tuple[int, ...] = ()


def tensors(model: Model, width: int = 0) -> Iterator[Tensor]:
    """All tensors of the stock architecture of `model`, layer by layer.

    Args:
      width: of experts in the checkpoint; 0 is the width that an export fills them up to.
    """
    D, V = model.d_model, model.vocab_size
    width = width or padded_width(model)
    yield Tensor("model.embed_tokens.weight", (V, D), "embedding", transposed=False)
    for layer in range(model.n_layers):
        yield from _block(model, layer, width)
    yield Tensor("model.norm.weight", (D,), "final_norm/gain", transposed=False)
    yield Tensor("lm_head.weight", (V, D), "head")


def _block(model: Model, layer: int, width: int) -> Iterator[Tensor]:
    prefix = f"model.layers.{layer}"
    yield _gain(model, f"{prefix}.input_layernorm", "attention_norm", layer)
    yield from _attention(model, f"{prefix}.self_attn", layer)
    yield _gain(model, f"{prefix}.post_attention_layernorm", "ffn_norm", layer)
    if model.n_experts:
        yield from _experts(model, f"{prefix}.mlp", layer, width)
    else:
        yield from _swiglu(
            model,
            f"{prefix}.mlp",
            "blocks/ffn/",
            (layer,),
            width=model.d_ff,
            factor=model.ffn_scale,
        )


def _gain(model: Model, name: str, norm: str, layer: int) -> Tensor:
    """The gain of a block's norm, which takes in the factor of LayerNorm Scaling."""
    scale = 1 / math.sqrt(layer + 1) if model.layer_norm_scaling else 1.0
    return Tensor(
        f"{name}.weight",
        (model.d_model,),
        f"blocks/{norm}/gain",
        (layer,),
        transposed=False,
        factor=scale,
    )


def _attention(model: Model, prefix: str, layer: int) -> Iterator[Tensor]:
    D = model.d_model
    wide = model.n_heads * model.head_dim
    narrow = model.n_kv_heads * model.head_dim
    projections = (
        ("q_proj", "query", wide),
        ("k_proj", "key", narrow),
        ("v_proj", "value", narrow),
    )
    for theirs, ours, rows in projections:
        name = f"{prefix}.{theirs}"
        path = f"blocks/attention/{ours}"
        yield Tensor(f"{name}.weight", (rows, D), path, (layer,))
        if model.n_experts:
            # Their mixture of experts has biases here, ours has none.
            yield Tensor(f"{name}.bias", (rows,), "")
    yield Tensor(f"{prefix}.o_proj.weight", (D, wide), "blocks/attention/out", (layer,))


def _experts(model: Model, prefix: str, layer: int, width: int) -> Iterator[Tensor]:
    D, E, k = model.d_model, model.n_experts, model.top_k
    routed, shared = 1.0, 1.0
    if model.shared_expert:
        # Twice 1/(k+1), as their gate of the shared expert halves it.
        routed, shared = k / (k + 1), 2 / (k + 1)
    yield Tensor(f"{prefix}.gate.weight", (E, D), "blocks/ffn/router", (layer,))
    for expert in range(E):
        yield from _swiglu(
            model,
            f"{prefix}.experts.{expert}",
            "blocks/ffn/",
            (layer, expert),
            width=width,
            own_width=model.d_ff,
            factor=routed,
        )
    yield from _swiglu(
        model,
        f"{prefix}.shared_expert",
        "blocks/ffn/shared/" if model.shared_expert else "",
        (layer,),
        width=shared_width(model),
        factor=shared,
    )
    yield Tensor(f"{prefix}.shared_expert_gate.weight", (1, D), "")


def _swiglu(
    model: Model,
    prefix: str,
    path: str,
    index: tuple[int, ...],
    *,
    width: int,
    own_width: int = 0,
    factor: float = 1.0,
) -> Iterator[Tensor]:
    """The three matrices of a SwiGLU of `width`, of which `own_width` is ours (0: all).

    An empty `path` stands for an expert of zeros that we don't have.
    """
    D = model.d_model
    own = own_width or width
    for ours in ("gate", "up"):
        yield Tensor(
            f"{prefix}.{ours}_proj.weight",
            (width, D),
            path and path + ours,
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
    """The values of one of their tensors, float32 of `tensor.shape`.

    Args:
      ours: the layer's (and expert's) part of our parameter.
    """
    used = tensor.used or tensor.shape
    values = ours
    if tensor.transposed:
        values = ours.reshape(used[::-1]).T
    if tensor.factor != 1:
        values = values * np.float32(tensor.factor)
    missing = [(0, size - own) for size, own in zip(tensor.shape, used, strict=True)]
    return np.pad(values, missing)


def to_ours(tensor: Tensor, theirs: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The part of our parameter, float32 of `shape`, of which `to_theirs` makes `theirs`.

    Raises:
      ConfigError: there are other values than zeros beyond what is ours.
    """
    used = tensor.used or tensor.shape
    values = theirs[tuple(slice(size) for size in used)]
    if np.count_nonzero(values) != np.count_nonzero(theirs):
        raise ConfigError(
            f"{tensor.name} is not zero where it is filled up:"
            " choose a model that `sparsecod export` wrote"
        )
    if tensor.transposed:
        values = values.T
    values = values.reshape(shape)
    if tensor.factor != 1:
        values = values / np.float32(tensor.factor)
    return values
