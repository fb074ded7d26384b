"""Which stock architecture computes our model, and which model does a config.json describe?

Hugging Face configs: dense models are exactly `LlamaForCausalLM`, mixtures of experts
exactly `Qwen2MoeForCausalLM`. `MistralForCausalLM` is Llama under another name as long as
its window of attention is not shorter than its sequences.
"""

from collections.abc import Mapping
from typing import Any

from sparsecod_jax.config import Model
from sparsecod_jax.errors import ConfigError

Values = Mapping[str, Any]  # of a config.json

LLAMA = "LlamaForCausalLM"
MISTRAL = "MistralForCausalLM"
MOE = "Qwen2MoeForCausalLM"
MODEL_TYPES = {LLAMA: "llama", MISTRAL: "mistral", MOE: "qwen2_moe"}

# Width of the shared expert that stands for none, made of zeros: not every engine takes
# tensors of size 0.
NO_SHARED_EXPERT = 1
# The width of experts is a multiple of this many numbers there, as the products of stock
# engines take rows of whole 16 bytes.
EXPERT_MULTIPLE = 8
EXPERT_MULTIPLE_FLOAT32 = 4
# Added config fields that stock code computes, or that are folded into the tensors.
EXPORTED: tuple[str, ...] = ()
OWN_WIDTH = "sparsecod_expert_width"  # our width of experts, where zeros fill it up
LARGEST = 2**31  # of a size; beyond it, a config.json does not mean what it says

# What transformers assumes where a config.json is silent.
_DEFAULTS: dict[str, dict[str, Any]] = {
    LLAMA: {"max_position_embeddings": 2048},
    MISTRAL: {
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
    MOE: {"max_position_embeddings": 32768, "num_key_value_heads": 16},
}
# What must be so for the model to be one of ours.
_NEEDED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "qkv_bias": True,  # of a mixture of experts, where the biases are zeros
    "use_sliding_window": False,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "pretraining_tp": 1,
    "quantization_config": None,  # weights would have to be unpacked
    "auto_map": None,  # names code of its own
}
_SIZES = {
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "vocab_size": "vocab_size",
}
_ROPE_THETA = 10000.0  # where a config.json gives none


def to_config(
    model: Model, max_seq_len: int, dtype: str, eos_id: int, start_id: int
) -> dict[str, Any]:
    """The config.json of the stock model that computes `model`.

    Rotary settings and dtype are written as transformers 4 reads them and as 5 does.

    Args:
      max_seq_len: tokens of the longest sequence in training.
      dtype: of the weights, by its name.
      eos_id: the id that ends a document.
      start_id: the id that stands before a text without context.

    Raises:
      ConfigError: the model has a config field that stock code does not have, a shared
        expert of width 1, which stands for none there, or experts whose rows can't be
        padded.
    """
    _check_exportable(model, dtype)
    if model.n_experts:
        name, own = MOE, _moe_config(model)
    else:
        name, own = LLAMA, {"attention_bias": False, "mlp_bias": False}
    common = {
        "architectures": [name],
        "model_type": MODEL_TYPES[name],
        "hidden_size": model.d_model,
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": model.n_heads,
        "num_key_value_heads": model.n_kv_heads,
        "head_dim": model.head_dim,
        "intermediate_size": model.d_ff,
        "hidden_act": "silu",
        "vocab_size": model.vocab_size,
        "max_position_embeddings": max_seq_len,
        "rms_norm_eps": model.norm_eps,
        "rope_theta": model.rope_theta,
        "rope_parameters": {"rope_theta": model.rope_theta, "rope_type": "default"},
        "tie_word_embeddings": False,
        "bos_token_id": start_id,
        "eos_token_id": eos_id,
        "dtype": dtype,
        "torch_dtype": dtype,
    }
    return common | own


def _check_exportable(model: Model, dtype: str) -> None:
    """Refuses what stock code can't compute exactly."""
    unknown = model.unknown_to(EXPORTED)
    if unknown:
        raise ConfigError(
            f"no stock architecture has model.{', model.'.join(unknown)}:"
            " such a model can't be exported"
        )
    multiple = EXPERT_MULTIPLE
    if dtype == "float32":
        multiple = EXPERT_MULTIPLE_FLOAT32
    if model.n_experts and model.d_model % multiple:
        raise ConfigError(
            f"model.d_model={model.d_model} is no multiple of {multiple}, as stock code for"
            f" mixtures of experts in {dtype} needs: it can't be exported"
        )
    if model.d_shared == NO_SHARED_EXPERT:
        raise ConfigError(
            f"a shared expert of width {NO_SHARED_EXPERT} can't be told from none there:"
            " such a model can't be exported"
        )


def _moe_config(model: Model) -> dict[str, Any]:
    """The part of config.json that only mixtures of experts have."""
    width = padded_width(model)
    values = {
        "num_experts": model.n_experts,
        "num_experts_per_tok": model.top_k,
        "moe_intermediate_size": width,
    }
    if width != model.d_ff:
        values[OWN_WIDTH] = model.d_ff
    return values | {
        "norm_topk_prob": model.normalize_gates,
        "shared_expert_intermediate_size": shared_width(model),
        "router_aux_loss_coef": model.load_balance_weight,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        # Zeros, as older transformers and other engines expect them to be there.
        "qkv_bias": True,
        "use_sliding_window": False,
    }


def padded_width(model: Model) -> int:
    """Width of an expert with the columns of zeros that an export adds."""
    return -(-model.d_ff // EXPERT_MULTIPLE) * EXPERT_MULTIPLE


def expert_width(values: Values) -> int:
    """Width of an expert in the tensors that a config.json describes; 0 if it is dense.

    Raises:
      ConfigError: it has no such width.
    """
    if _architecture(values) != MOE:
        return 0
    return _size(values, "moe_intermediate_size")


def shared_width(model: Model) -> int:
    """Width of the shared expert that `Qwen2MoeForCausalLM` always has."""
    return model.d_shared or NO_SHARED_EXPERT


def from_config(values: Values) -> tuple[Model, int]:
    """The model that a config.json describes, and its longest sequence in tokens.

    Args:
      values: of the file, not checked in any way so far.

    Raises:
      ConfigError: names the architecture or setting that is not computed here, or is not
        what it should be.
    """
    name = _architecture(values)
    if not isinstance(name, str) or name not in _DEFAULTS:
        raise ConfigError(
            f"config.json names the architecture {name!r}:"
            f" only {', '.join(_DEFAULTS)} can be read"
        )
    # What is in the file wins over what transformers assumes without it.
    values = {"model_type": MODEL_TYPES[name], **_DEFAULTS[name], **values}
    _check_settings(values, {**_NEEDED, "model_type": MODEL_TYPES[name]})
    fields: dict[str, Any] = {
        ours: _size(values, theirs) for ours, theirs in _SIZES.items()
    }
    fields["n_kv_heads"] = _size(values, "num_key_value_heads", fields["n_heads"])
    fields["head_dim"] = _size(values, "head_dim", 0)
    fields["norm_eps"] = _number(values, "rms_norm_eps", 1e-6)
    fields["rope_theta"] = _rope_theta(values)
    fields["compute_dtype"] = "float32"
    if name == MOE:
        fields |= _moe_fields(values)
    else:
        fields["d_ff"] = _size(values, "intermediate_size")
    max_seq_len = _size(values, "max_position_embeddings")
    if name == MISTRAL:
        _check_window(values, max_seq_len)
    return Model(**fields), max_seq_len


def _architecture(values: Values) -> Any:
    """The name that a config.json gives, alone or as the only one of a list."""
    names = values.get("architectures")
    if isinstance(names, list) and len(names) == 1:
        return names[0]
    return names


def _check_settings(values: Values, needed: Values) -> None:
    for key, value in needed.items():
        if values.get(key, value) != value:
            raise ConfigError(
                f"config.json has {key}={values[key]!r}, only {value!r} is computed here:"
                " choose another model"
            )


def _moe_fields(values: Values) -> dict[str, Any]:
    """The fields of `Model` that describe the experts."""
    fields = {
        "d_ff": _own_width(values),
        "n_experts": _size(values, "num_experts"),
        "top_k": _size(values, "num_experts_per_tok"),
        "normalize_gates": values.get("norm_topk_prob", False) is True,
        "load_balance_weight": _number(values, "router_aux_loss_coef", 0.001),
    }
    shared = _size(values, "shared_expert_intermediate_size")
    if shared != NO_SHARED_EXPERT:
        fields |= {"shared_expert": True, "d_shared": shared}
    return fields


def _own_width(values: Values) -> int:
    """Width of an expert of ours, without the zeros of an export."""
    width = _size(values, "moe_intermediate_size")
    own = _size(values, OWN_WIDTH, width)
    if not width - EXPERT_MULTIPLE < own <= width:
        raise ConfigError(
            f"config.json has {OWN_WIDTH}={own} with moe_intermediate_size={width}:"
            " correct one of them"
        )
    return own


def _check_window(values: Values, max_seq_len: int) -> None:
    window = _size(values, "sliding_window", max_seq_len)
    if window < max_seq_len:
        raise ConfigError(
            f"config.json has sliding_window={window} below"
            f" max_position_embeddings={max_seq_len}, and windows are not computed here:"
            f" lower max_position_embeddings to {window}, within which they are without effect"
        )


def _rope_theta(values: Values) -> float:
    """The base of the rotary frequencies, which config.json has in any of three sections."""
    scaling = values.get("rope_scaling") or {}
    parameters = values.get("rope_parameters") or {}
    for section in (scaling, parameters):
        if not _is_plain_rope(section):
            raise ConfigError(
                f"config.json scales rotary positions ({section!r}):"
                " choose a model without that"
            )
    bases = {
        _number(section, "rope_theta", 0.0)
        for section in (values, scaling, parameters)
        if section.get("rope_theta") is not None
    }
    if len(bases) > 1:
        raise ConfigError(
            f"config.json has rope_theta as {sorted(bases)}: correct one of them"
        )
    return bases.pop() if bases else _ROPE_THETA


def _is_plain_rope(section: Any) -> bool:
    """Whether a section of rotary settings leaves positions as they are."""
    if not isinstance(section, dict) or set(section) - {
        "rope_type",
        "type",
        "rope_theta",
    }:
        return False
    kinds = (section.get("rope_type"), section.get("type"))
    return all(kind in (None, "default") for kind in kinds)


def _size(values: Values, key: str, default: int | None = None) -> int:
    """A positive integer; `default` where there is none or null."""
    value = values.get(key)
    if value is None and default is not None:
        return default
    if type(value) is not int or not 0 < value < LARGEST:
        raise ConfigError(
            f"config.json has {key}={_brief(value)}:"
            " correct it to a whole number above 0"
        )
    return value


def _number(values: Values, key: str, default: float) -> float:
    """A number of at least 0; `default` where there is none."""
    value = values.get(key, default)
    if type(value) not in (int, float) or not 0 <= value < LARGEST:
        raise ConfigError(
            f"config.json has {key}={_brief(value)}: correct it to a number of 0 or more"
        )
    return float(value)


def _brief(value: Any) -> str:
    if isinstance(value, int) and abs(value) >= LARGEST:
        return "a huge number"
    return repr(value)[:80]
