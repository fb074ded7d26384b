"""Which stock architecture computes our model, and which model does a config.json describe?

Dense models are exactly `LlamaForCausalLM`, mixtures exactly `Qwen2MoeForCausalLM`; `MistralForCausalLM` is Llama under another name as
long as its window of attention is not shorter than its sequences.
"""

from collections.abc import Mapping
from typing import Any

from sparsecod_jax.config import Model
from sparsecod_jax.errors import ConfigError

LLAMA, MISTRAL, MIXTURE = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2MoeForCausalLM",
)
MODEL_TYPES = {LLAMA: "llama", MISTRAL: "mistral", MIXTURE: "qwen2_moe"}
NO_SHARED_EXPERT = 1  # the width, of zeros: not every engine takes tensors of size 0
EXPERTS = 8  # numbers: the width of experts is a multiple of it there, as their products take rows of whole 16 bytes
OWN_WIDTH = "sparsecod_expert_width"  # ours, where zeros fill it up
LARGEST = 2**31  # of a size; beyond it, a config.json does not mean what it says

# What transformers assumes where a config.json is silent.
_DEFAULTS: dict[str, dict[str, Any]] = {
    LLAMA: {"max_position_embeddings": 2048},
    MISTRAL: {
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
    MIXTURE: {"max_position_embeddings": 32768, "num_key_value_heads": 16},
}
# What must be so for the model to be one of ours.
_NEEDED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "qkv_bias": True,  # a mixture's; they are zeros then
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


def to_config(
    model: Model, max_seq_len: int, dtype: str, eos_id: int, start_id: int
) -> dict[str, Any]:
    """The config.json of the stock model that computes `model`; sequences of up to `max_seq_len` tokens were trained on.

    Rotary settings and dtype are written as transformers 4 reads them and as 5 does.

    Raises:
      ConfigError: the model has a shared expert of width 1, which stands for none there, or experts whose rows can't be padded.
    """
    row = 4 if dtype == "float32" else EXPERTS
    if model.n_experts and model.d_model % row:
        raise ConfigError(
            f"model.d_model={model.d_model} is no multiple of {row}, as stock code for mixtures of {dtype} needs: it can't be exported"
        )
    if model.d_shared == NO_SHARED_EXPERT:
        raise ConfigError(
            f"a shared expert of width {NO_SHARED_EXPERT} can't be told from none there: such a model can't be exported"
        )
    name = MIXTURE if model.n_experts else LLAMA
    values = {
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
    return values | (
        _mixture_config(model)
        if model.n_experts
        else {"attention_bias": False, "mlp_bias": False}
    )


def _mixture_config(model: Model) -> dict[str, Any]:
    return {
        "num_experts": model.n_experts,
        "num_experts_per_tok": model.top_k,
        "moe_intermediate_size": padded_width(model),
        **({} if padded_width(model) == model.d_ff else {OWN_WIDTH: model.d_ff}),
        "norm_topk_prob": model.normalize_gates,
        "shared_expert_intermediate_size": shared_width(model),
        "router_aux_loss_coef": model.load_balance_weight,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "qkv_bias": True,  # zeros, as older transformers and other engines expect them to be there
        "use_sliding_window": False,
    }


def padded_width(model: Model) -> int:
    """Width of an expert with the columns of zeros that `Qwen2MoeForCausalLM` gets from us."""
    return -(-model.d_ff // EXPERTS) * EXPERTS


def expert_width(values: Mapping[str, Any]) -> int:
    """Width of an expert in the tensors that a config.json describes; 0 where it describes no mixture."""
    return (
        _size(values, "moe_intermediate_size")
        if _architecture(values) == MIXTURE
        else 0
    )


def _architecture(values: Mapping[str, Any]) -> Any:
    """The name that a config.json gives, alone or as the only one of a list."""
    names = values.get("architectures")
    return names[0] if isinstance(names, list) and len(names) == 1 else names


def shared_width(model: Model) -> int:
    """Width of the shared expert that `Qwen2MoeForCausalLM` always has."""
    return model.d_shared or NO_SHARED_EXPERT


def from_config(values: Mapping[str, Any]) -> tuple[Model, int]:
    """The model that a config.json describes, and its longest sequence in tokens.

    Raises:
      ConfigError: names the architecture or setting that is not computed here, or is not what it should be.
    """
    name = _architecture(values)
    if not isinstance(name, str) or name not in _DEFAULTS:
        raise ConfigError(
            f"config.json names the architecture {name!r}: only {', '.join(_DEFAULTS)} can be read"
        )
    values = {"model_type": MODEL_TYPES[name], **_DEFAULTS[name], **values}
    for key, needed in {**_NEEDED, "model_type": MODEL_TYPES[name]}.items():
        if values.get(key, needed) != needed:
            raise ConfigError(
                f"config.json has {key}={values[key]!r}, only {needed!r} is computed here: choose another model"
            )
    model: dict[str, Any] = {
        ours: _size(values, theirs) for ours, theirs in _SIZES.items()
    }
    model |= {
        "n_kv_heads": _size(values, "num_key_value_heads", model["n_heads"]),
        "head_dim": _size(values, "head_dim", 0),
    }
    model |= {
        "norm_eps": _number(values, "rms_norm_eps", 1e-6),
        "rope_theta": _rope_theta(values),
        "compute_dtype": "float32",
    }
    model |= (
        _experts(values)
        if name == MIXTURE
        else {"d_ff": _size(values, "intermediate_size")}
    )
    max_seq_len = _size(values, "max_position_embeddings")
    if name == MISTRAL:
        _check_window(values, max_seq_len)
    return Model(**model), max_seq_len


def _experts(values: Mapping[str, Any]) -> dict[str, Any]:
    shared = _size(values, "shared_expert_intermediate_size")
    return {
        "d_ff": _own_width(values),
        "n_experts": _size(values, "num_experts"),
        "top_k": _size(values, "num_experts_per_tok"),
        "normalize_gates": values.get("norm_topk_prob", False) is True,
        "load_balance_weight": _number(values, "router_aux_loss_coef", 0.001),
        **(
            {}
            if shared == NO_SHARED_EXPERT
            else {"shared_expert": True, "d_shared": shared}
        ),
    }


def _own_width(values: Mapping[str, Any]) -> int:
    """Width of an expert of ours."""
    width = _size(values, "moe_intermediate_size")
    own = _size(values, OWN_WIDTH, width)
    if not width - EXPERTS < own <= width:
        raise ConfigError(
            f"config.json has {OWN_WIDTH}={own} with moe_intermediate_size={width}: correct one of them"
        )
    return own


def _check_window(values: Mapping[str, Any], max_seq_len: int) -> None:
    window = _size(values, "sliding_window", max_seq_len)
    if window < max_seq_len:
        raise ConfigError(
            f"config.json has sliding_window={window} below max_position_embeddings={max_seq_len}, and windows are not computed here:"
            f" lower max_position_embeddings to {window}, within which they are without effect"
        )


def _rope_theta(values: Mapping[str, Any]) -> float:
    """The base of the rotary frequencies, which stands in either of two places."""
    scaling, parameters = (
        values.get(key) or {} for key in ("rope_scaling", "rope_parameters")
    )
    for section in (scaling, parameters):
        plain = isinstance(section, dict) and not set(section) - {
            "rope_type",
            "type",
            "rope_theta",
        }
        if not plain or any(
            section.get(kind) not in (None, "default") for kind in ("rope_type", "type")
        ):
            raise ConfigError(
                f"config.json scales rotary positions ({section!r}): choose a model without that"
            )
    found = {
        _number(section, "rope_theta", 0.0)
        for section in (values, scaling, parameters)
        if section.get("rope_theta") is not None
    }
    if len(found) > 1:
        raise ConfigError(
            f"config.json has rope_theta as {sorted(found)}: correct one of them"
        )
    return found.pop() if found else 10000.0


def _size(values: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A positive integer; `default` where there is none or null."""
    value = values.get(key)
    if value is None and default is not None:
        return default
    if type(value) is not int or not 0 < value < LARGEST:
        raise ConfigError(
            f"config.json has {key}={_brief(value)}: correct it to a whole number above 0"
        )
    return value


def _number(values: Mapping[str, Any], key: str, default: float) -> float:
    value = values.get(key, default)
    if type(value) not in (int, float) or not 0 <= value < LARGEST:
        raise ConfigError(
            f"config.json has {key}={_brief(value)}: correct it to a number of 0 or more"
        )
    return float(value)


def _brief(value: Any) -> str:
    return (
        "a huge number"
        if isinstance(value, int) and abs(value) >= LARGEST
        else repr(value)[:80]
    )
