"""A config.json is read as transformers reads it, or refused by name."""

import dataclasses

import pytest

from sparsecod_jax import config
from sparsecod_jax.config.experiment import added
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.pretrained import hf_config
from sparsecod_jax.pretrained.hf_config import expert_width, from_config, to_config
from tests.support import tiny_configs

PLAIN = to_config(tiny_configs.MODEL, 64, "float32", 5, 5)


@pytest.mark.parametrize(
    "model",
    [
        tiny_configs.MODEL,
        tiny_configs.MIXTURE,
        dataclasses.replace(tiny_configs.MIXTURE, shared_expert=False, d_shared=0),
    ],
)
def test_there_and_back(model):
    again, max_seq_len = from_config(to_config(model, 64, "float32", 5, 5))
    assert max_seq_len == 64
    assert again == dataclasses.replace(
        model, init_std=again.init_std, router_z_weight=again.router_z_weight
    )


@pytest.mark.parametrize(
    "name", ["GPT2LMHeadModel", "Qwen3ForCausalLM", "MixtralForCausalLM", None]
)
def test_other_architectures_are_refused_by_name(name):
    with pytest.raises(
        ConfigError,
        match=f"architecture {name!r}:"
        " only LlamaForCausalLM, MistralForCausalLM, Qwen2MoeForCausalLM",
    ):
        from_config(PLAIN | {"architectures": [name]})


def test_two_architectures_are_none():
    with pytest.raises(ConfigError, match="only LlamaForCausalLM"):
        from_config(PLAIN | {"architectures": ["LlamaForCausalLM", "GPT2LMHeadModel"]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "gelu"}, "has hidden_act='gelu', only 'silu' is computed here"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"mlp_bias": True}, "mlp_bias=True"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
            "scales rotary positions .*llama3",
        ),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            "scales rotary positions .*linear",
        ),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}},
            "scales rotary positions .*yarn",
        ),
        ({"quantization_config": {"bits": 4}}, "quantization_config="),
        ({"auto_map": {"AutoModelForCausalLM": "modeling.Evil"}}, "auto_map="),
        ({"model_type": "qwen3"}, "model_type='qwen3', only 'llama'"),
        ({"pretraining_tp": 2}, "pretraining_tp=2"),
        ({"rope_scaling": "linear"}, r"scales rotary positions \('linear'\)"),
        ({"rope_scaling": {"rope_type": ["x"]}}, "rope_type"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}},
            "full_attention",
        ),
        (
            {"rope_theta": 5e5},
            r"rope_theta as \[10000\.0, 500000\.0\]: correct one of them",
        ),
        (
            {"hidden_size": "32"},
            "hidden_size='32': correct it to a whole number above 0",
        ),
        ({"hidden_size": 10**400}, "hidden_size=a huge number"),
        ({"num_hidden_layers": -1}, "num_hidden_layers=-1"),
        ({"num_attention_heads": True}, "num_attention_heads=True"),
        ({"num_key_value_heads": 0}, "num_key_value_heads=0"),
        ({"head_dim": 0}, "head_dim=0"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps=a huge number"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps='small'"),
        ({"num_key_value_heads": 3}, "not a multiple of model.n_kv_heads=3"),
        ({"max_position_embeddings": "long"}, "max_position_embeddings='long'"),
        ({"max_position_embeddings": 10**30}, "max_position_embeddings=a huge number"),
    ],
)
def test_settings_that_are_not_computed_here_are_refused_by_name(change, message):
    with pytest.raises(ConfigError, match=message):
        from_config(PLAIN | change)


def test_a_missing_size_is_named():
    with pytest.raises(ConfigError, match="has intermediate_size=None: correct it"):
        from_config(
            {
                name: value
                for name, value in PLAIN.items()
                if name != "intermediate_size"
            }
        )


def test_windows_are_without_effect_or_refused():
    mistral = PLAIN | {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "max_position_embeddings": 4096,
    }
    assert from_config(mistral | {"sliding_window": 4096})[1] == 4096
    assert from_config(mistral | {"sliding_window": None})[1] == 4096
    with pytest.raises(
        ConfigError,
        match="lower max_position_embeddings to 1024, within which they are without effect",
    ):
        from_config(mistral | {"sliding_window": 1024})
    for window in ("4096", -1, True):
        with pytest.raises(
            ConfigError,
            match=r"sliding_window=.*: correct it to a whole number above 0",
        ):
            from_config(mistral | {"sliding_window": window})


def test_a_shared_expert_that_would_be_taken_for_none_does_not_leave():
    with pytest.raises(
        ConfigError, match="a shared expert of width 1 can't be told from none"
    ):
        to_config(
            dataclasses.replace(tiny_configs.MIXTURE, d_shared=1), 64, "float32", 5, 5
        )


def test_a_mixture_by_its_bare_name_is_one():
    values = to_config(tiny_configs.MIXTURE, 64, "float32", 5, 5)
    bare = values | {"architectures": "Qwen2MoeForCausalLM"}
    assert expert_width(bare) == expert_width(values) > 0
    assert from_config(bare) == from_config(values)


def test_rows_of_a_mixture_are_whole_16_bytes():
    narrow = dataclasses.replace(tiny_configs.MIXTURE, d_model=12)
    assert to_config(narrow, 64, "float32", 5, 5)["hidden_size"] == 12
    with pytest.raises(
        ConfigError,
        match=r"model\.d_model=12 is no multiple of 8,"
        " as stock code for mixtures of experts in bfloat16 needs",
    ):
        to_config(narrow, 64, "bfloat16", 5, 5)


def test_mixtures_without_biases_are_refused():
    with pytest.raises(ConfigError, match="qkv_bias=False, only True"):
        from_config(
            to_config(tiny_configs.MIXTURE, 64, "float32", 5, 5) | {"qkv_bias": False}
        )


def test_silence_means_what_transformers_means_by_it():
    transformers = pytest.importorskip(
        "transformers", reason="the parity extra is not installed"
    )
    for name, kind in (
        ("LlamaForCausalLM", transformers.LlamaConfig),
        ("MistralForCausalLM", transformers.MistralConfig),
    ):
        sizes = {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 8,
            "intermediate_size": 48,
            "vocab_size": 304,
        }
        theirs = kind(**sizes)
        window = {"sliding_window": None} if name == "MistralForCausalLM" else {}
        model, max_seq_len = from_config({"architectures": [name], **sizes, **window})
        assert (max_seq_len, model.n_kv_heads, model.norm_eps, model.rope_theta) == (
            theirs.max_position_embeddings,
            theirs.num_key_value_heads,
            theirs.rms_norm_eps,
            10000.0,
        )


@dataclasses.dataclass(frozen=True)
class Newer(config.Model):
    """A model of a later version."""

    variant: str = added("none")


def test_an_added_field_that_nobody_declared_exportable_is_refused(monkeypatch):
    model = Newer(variant="x")
    message = (
        r"no stock architecture has model\.variant: such a model can't be exported"
    )
    with pytest.raises(ConfigError, match=message):
        to_config(model, 64, "float32", 5, 5)
    monkeypatch.setattr(hf_config, "EXPORTED", ("variant",))
    assert to_config(model, 64, "float32", 5, 5) == to_config(
        Newer(), 64, "float32", 5, 5
    )
