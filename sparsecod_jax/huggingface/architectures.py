"""Which stock architecture computes our model, and which model does a config.json describe?

Dense models are exactly `LlamaForCausalLM`, mixtures exactly `Qwen2MoeForCausalLM`; `MistralForCausalLM` is Llama under another name as
long as its window of attention is not shorter than its sequences.
"""

from collections.abc import Mapping
from typing import Any

from sparsecod_jax.config import Model, from_dict
from sparsecod_jax.errors import ConfigError

LLAMA, MISTRAL, MIXTURE = "LlamaForCausalLM", "MistralForCausalLM", "Qwen2MoeForCausalLM"
NO_SHARED_EXPERT = 1  # the width, of zeros: not every engine takes tensors of size 0

# What transformers assumes where a config.json is silent, and what must be so for the model to be one of ours.
_DEFAULTS: dict[str, dict[str, Any]] = {
    LLAMA: {"max_position_embeddings": 2048},
    MISTRAL: {"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
    MIXTURE: {"max_position_embeddings": 32768, "num_key_value_heads": 16, "norm_topk_prob": False, "router_aux_loss_coef": 0.001},
}
_NEEDED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "quantization_config": None,  # weights would have to be unpacked
    "auto_map": None,  # names code of its own
}
_SIZES = {
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "d_ff": "intermediate_size",
    "vocab_size": "vocab_size",
}
_MIXTURE_SIZES = {"d_ff": "moe_intermediate_size", "n_experts": "num_experts", "top_k": "num_experts_per_tok"}


def to_config(model: Model, longest: int, dtype: str, eos_id: int, start_id: int) -> dict[str, Any]:
    """The config.json of the stock model that computes `model`; sequences of up to `longest` tokens were trained on.

    Rotary settings and dtype are written as transformers 4 reads them and as 5 does.
    """
    values = {
        "architectures": [MIXTURE if model.n_experts else LLAMA],
        "model_type": "qwen2_moe" if model.n_experts else "llama",
        "hidden_size": model.d_model,
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": model.n_heads,
        "num_key_value_heads": model.n_kv_heads,
        "head_dim": model.head_dim,
        "intermediate_size": model.d_ff,
        "hidden_act": "silu",
        "vocab_size": model.vocab_size,
        "max_position_embeddings": longest,
        "rms_norm_eps": model.norm_eps,
        "rope_theta": model.rope_theta,
        "rope_parameters": {"rope_theta": model.rope_theta, "rope_type": "default"},
        "tie_word_embeddings": False,
        "bos_token_id": start_id,
        "eos_token_id": eos_id,
        "dtype": dtype,
        "torch_dtype": dtype,
    }
    return values | (_mixture_config(model) if model.n_experts else {"attention_bias": False, "mlp_bias": False})


def _mixture_config(model: Model) -> dict[str, Any]:
    return {
        "num_experts": model.n_experts,
        "num_experts_per_tok": model.top_k,
        "moe_intermediate_size": model.d_ff,
        "norm_topk_prob": model.normalize_gates,
        "shared_expert_intermediate_size": shared_width(model),
        "router_aux_loss_coef": model.load_balance_weight,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "qkv_bias": True,  # zeros, as older transformers and other engines expect them to be there
        "use_sliding_window": False,
    }


def shared_width(model: Model) -> int:
    """Width of the shared expert that `Qwen2MoeForCausalLM` always has."""
    return model.d_shared or NO_SHARED_EXPERT


def from_config(values: Mapping[str, Any]) -> tuple[Model, int]:
    """The model that a config.json describes, and its longest sequence in tokens.

    Raises:
      ConfigError: names the architecture or setting that is not computed here.
    """
    names = values.get("architectures")
    name = names[0] if isinstance(names, list) and len(names) == 1 else names
    if not isinstance(name, str) or name not in _DEFAULTS:
        raise ConfigError(f"config.json names the architecture {name!r}: only {', '.join(_DEFAULTS)} can be read")
    values = _DEFAULTS[name] | dict(values)
    _check(values)
    sizes = {ours: _get(values, theirs) for ours, theirs in (_SIZES | _MIXTURE_SIZES if name == MIXTURE else _SIZES).items()}
    optional = {"n_kv_heads": values.get("num_key_value_heads"), "head_dim": values.get("head_dim")}
    model = {
        **sizes,
        **{field: value for field, value in optional.items() if value is not None},
        "norm_eps": values.get("rms_norm_eps", 1e-6),
        "rope_theta": _rope_theta(values),
        "compute_dtype": "float32",
    }
    if name == MIXTURE:
        shared = _get(values, "shared_expert_intermediate_size")
        model |= {"normalize_gates": values["norm_topk_prob"], "load_balance_weight": values["router_aux_loss_coef"]}
        model |= {} if shared == NO_SHARED_EXPERT else {"shared_expert": True, "d_shared": shared}
    longest = values["max_position_embeddings"]
    _check_window(values.get("sliding_window") if name == MISTRAL else None, longest)
    return from_dict(model, Model, "config.json as model."), longest


def _check(values: Mapping[str, Any]) -> None:
    for key, needed in _NEEDED.items():
        if values.get(key, needed) != needed:
            raise ConfigError(f"config.json has {key}={values[key]!r}, only {needed!r} is computed here: choose another model")
    scaling = values.get("rope_scaling") or {}
    kinds = {scaling.get("rope_type", scaling.get("type", "default")), _rope_parameters(values).get("rope_type", "default")}
    if kinds != {"default"}:
        raise ConfigError(f"config.json scales rotary positions ({', '.join(sorted(kinds - {'default'}))}): choose a model without that")


def _check_window(window: int | None, longest: int) -> None:
    if not isinstance(longest, int) or longest < 2:
        raise ConfigError(f"config.json has max_position_embeddings={longest!r}: correct it to a number of tokens")
    if window is not None and window < longest:
        raise ConfigError(
            f"config.json has sliding_window={window} below max_position_embeddings={longest}, and windows are not computed here:"
            f" lower max_position_embeddings to {window}, within which they are without effect"
        )


def _rope_theta(values: Mapping[str, Any]) -> Any:
    return values.get("rope_theta") or _rope_parameters(values).get("rope_theta") or 10000.0


def _rope_parameters(values: Mapping[str, Any]) -> Mapping[str, Any]:
    return values.get("rope_parameters") or {}


def _get(values: Mapping[str, Any], key: str) -> Any:
    if key not in values:
        raise ConfigError(f"config.json lacks {key}: download it again")
    return values[key]
