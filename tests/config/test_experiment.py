"""Which config fields are accepted, and what they become."""

import json
import re

import pytest

from sparsecod_jax import config
from sparsecod_jax.errors import ConfigError


def _nested(flat):
    values = {}
    for name, value in flat.items():
        *sections, field = name.split(".")
        target = values
        for section in sections:
            target = target.setdefault(section, {})
        target[field] = value
    return values


POSITIVE = (
    *(
        f"model.{name}"
        for name in (
            "d_model",
            "n_layers",
            "n_heads",
            "d_ff",
            "vocab_size",
            "rope_theta",
            "norm_eps",
        )
    ),
    *(f"optimizer.{name}" for name in ("peak_lr", "eps", "clip_norm")),
    *("data.seq_len", "evaluation.seq_len", "evaluation.batch_size"),
    *("checkpoint.every", "checkpoint.keep", "log.every", "steps", "global_batch"),
)
AXES = ("data", "fsdp", "expert", "tensor")
MIXTURE = {"model.n_experts": 8, "model.top_k": 2}
FLOATS = ("rope_theta", "norm_eps", "peak_lr", "eps", "clip_norm")
REFUSALS = [
    *(
        (
            {name: 0.0 if name.split(".")[-1] in FLOATS else 0},
            rf"^{re.escape(name)} is 0(\.0)?: set it above 0$",
        )
        for name in POSITIVE
    ),
    ({"model.n_layers": -2}, r"^model\.n_layers is -2: set it above 0"),
    ({"model.n_kv_heads": -4}, r"^model\.n_kv_heads is -4: set it above 0"),
    ({"model.head_dim": -2}, r"^model\.head_dim is -2: set it above 0"),
    ({"model.init_std": -0.1}, r"^model\.init_std is -0\.1: set it above 0"),
    (
        {"model.d_model": 100},
        r"^model\.d_model=100 is not a multiple of model\.n_heads=16: .*or set model\.head_dim",
    ),
    (
        {"model.n_kv_heads": 3},
        r"^model\.n_heads=16 is not a multiple of model\.n_kv_heads=3: choose a divisor",
    ),
    ({"model.head_dim": 7}, r"^model\.head_dim=7 is odd .*: make it even"),
    ({"model.n_experts": -8}, r"^model\.n_experts is -8: set it above 0$"),
    ({"model.n_experts": 8}, r"^model\.top_k is 0: set it above 0$"),
    (
        {"model.n_experts": 8, "model.top_k": -2},
        r"^model\.top_k is -2: set it above 0$",
    ),
    (
        {"model.n_experts": 8, "model.top_k": 9},
        r"^model\.top_k=9 is more than model\.n_experts=8: lower it",
    ),
    (
        {**MIXTURE, "model.shared_expert": True},
        r"^model\.shared_expert=True but model\.d_shared=0: set both, .* or neither$",
    ),
    (
        {**MIXTURE, "model.d_shared": -64},
        r"^model\.shared_expert=False but model\.d_shared=-64: set both",
    ),
    (
        {**MIXTURE, "model.d_shared": 64},
        r"^model\.shared_expert=False but model\.d_shared=64: set both, .* or neither$",
    ),
    (
        {**MIXTURE, "model.shared_expert": True, "model.d_shared": -64},
        r"^model\.shared_expert=True but model\.d_shared=-64: set both",
    ),
    (
        {"model.top_k": 2},
        r"^model\.n_experts is 0 but \['top_k'\] are set: set model\.n_experts, or leave them out$",
    ),
    (
        {"model.normalize_gates": True},
        r"^model\.n_experts is 0 but \['normalize_gates'\] are set: ",
    ),
    (
        {"model.shared_expert": True, "model.d_shared": 64},
        r"^model\.n_experts is 0 but \['shared_expert', 'd_shared'\] are set: ",
    ),
    ({"model.ffn_scale": 0.0}, r"^model\.ffn_scale is 0\.0: set it above 0$"),
    (
        {**MIXTURE, "model.ffn_scale": 0.5},
        r"^model\.ffn_scale=0\.5 is for a dense FFN, and experts have gates: leave it out$",
    ),
    (
        {"model.load_balance_weight": -0.1},
        r"^model\.load_balance_weight=-0\.1 is negative: use 0 or more$",
    ),
    (
        {**MIXTURE, "model.router_z_weight": -1},
        r"^model\.router_z_weight=-1\.0 is negative: use 0 or more$",
    ),
    ({"data.seed": -1}, r"^data\.seed=-1 is not an unsigned 32-bit number: choose"),
    ({"data.seed": 2**32}, r"^data\.seed=4294967296 is not an unsigned"),
    (
        {"optimizer.weight_decay": -0.1},
        r"^optimizer\.weight_decay=-0\.1 is negative: use",
    ),
    ({"optimizer.b1": 1.0}, r"^optimizer\.b1=1\.0 is not in \[0, 1\): lower it"),
    ({"optimizer.b2": -0.5}, r"^optimizer\.b2=-0\.5 is not in \[0, 1\)"),
    (
        {"optimizer.decayed": ["matrices", "gains"]},
        r"^optimizer\.decayed names \['gains'\]: choose from \['embedding', 'head', 'matrices'",
    ),
    ({"schedule.warmup_steps": -1}, r"^schedule\.warmup_steps=-1 is negative: use"),
    (
        {"schedule.final_fraction": 1.5},
        r"^schedule\.final_fraction=1\.5 is not in \[0, 1\]: change it",
    ),
    *(
        (
            {f"mesh.{axis}": -1},
            rf"^mesh\.{axis} is -1: use a positive number, or 0 to have it chosen$",
        )
        for axis in AXES
    ),
    (
        {"execution.accumulation": -1},
        r"^execution\.accumulation is negative: use a positive number, or 0 to have it chosen$",
    ),
    (
        {"execution.attention": "flash"},
        r"^execution\.attention='flash' is not known: choose from \['auto', 'xla', 'splash', ",
    ),
    (
        {"execution.attention": "cudnn", "model.compute_dtype": "float32"},
        r"^execution\.attention=cudnn computes in 16 bits: set ",
    ),
    (
        {"execution.max_skipped_updates": -1},
        r"^execution\.max_skipped_updates is negative: use",
    ),
    ({"evaluation.every": -1}, r"^evaluation\.every or .* is negative: use"),
    (
        {"evaluation.max_tokens": -1},
        r"^evaluation\.every or evaluation\.max_tokens is negative: use",
    ),
    ({"checkpoint.keep_every": -1}, r"^checkpoint\.keep_every is negative: use"),
    ({"log.moments_every": -1}, r"^log\.moments_every is negative: use 0 for never"),
    ({"seed": -1}, r"^seed=-1 is not an unsigned 32-bit number: choose"),
    ({"seed": 2**32}, r"^seed=4294967296 is not an unsigned"),
    (
        {"execution.accumulation": 3},
        r"^global_batch=256 is not a multiple of execution\.accumulation=3: change",
    ),
    (
        {"steps": 1000},
        r"^schedule\.warmup_steps=1000 leaves no step of steps=1000 for the cosine: lower it",
    ),
    (
        {"model.n_layer": 3},
        r"^model\.n_layer is not a config field: did you mean model\.n_layers\?",
    ),
    ({"modle": {}}, r"^modle is not a config field: did you mean model\?"),
    (
        {"log.zzz": 3},
        r"^log\.zzz is not a config field: choose from \['every', 'moments_every'\]",
    ),
    ({"model": 3}, r"^model=3 is not a section: "),
    ({"model.n_layers": 3.0}, r"^model\.n_layers=3\.0 is not of type int: "),
    ({"model.n_layers": True}, r"^model\.n_layers=True is not of type int: "),
    (
        {"model.document_masking": 1},
        r"^model\.document_masking=1 is not of type bool: ",
    ),
    (
        {"optimizer.peak_lr": "4e-4"},
        r"^optimizer\.peak_lr='4e-4' is not of type float: ",
    ),
    (
        {"optimizer.peak_lr": float("inf")},
        r"^optimizer\.peak_lr=inf is not finite in float32: ",
    ),
    (
        {"optimizer.weight_decay": float("nan")},
        r"^optimizer\.weight_decay=nan is not finite in float32: ",
    ),
    ({"data.path": None}, r"^data\.path=None is not of type str: "),
    (
        {"model.compute_dtype": "float16"},
        r"^model\.compute_dtype='float16' is not known: choose from \['float32', 'bfloat16', ",
    ),
    (
        {"schedule.kind": ["cosine"]},
        r"^schedule\.kind=\['cosine'\] is not known: choose from \['cosine', 'constant'\]",
    ),
    (
        {"optimizer.decayed": "matrices"},
        r"^optimizer\.decayed='matrices' is not a list of names: ",
    ),
    ({"optimizer.decayed": 3}, r"^optimizer\.decayed=3 is not a list of names: "),
    (
        {"optimizer.decayed": ["head", 3]},
        r"^optimizer\.decayed=\['head', 3\] is not a list of names: ",
    ),
]


@pytest.mark.parametrize(
    ("flat", "sentence"),
    REFUSALS,
    ids=[json.dumps(flat)[1:-1].replace('"', "") for flat, _ in REFUSALS],
)
def test_refusals_are_one_sentence_with_a_fix(flat, sentence):
    with pytest.raises(ConfigError, match=sentence) as caught:
        config.from_dict(_nested(flat))
    assert re.fullmatch(r"[^\n:]+: [^\n]+", str(caught.value))


def test_what_is_odd_but_right_is_taken():
    assert config.from_dict({"optimizer": {"clip_norm": 1}}).optimizer.clip_norm == 1.0
    assert config.from_dict({"optimizer": {"decayed": []}}).optimizer.decayed == ()
    assert (
        config.from_dict({"model": {"d_model": 100, "head_dim": 8}}).model.head_dim == 8
    )
    assert (
        config.from_dict({"steps": 5, "schedule": {"kind": "constant"}}).steps == 5
    )  # constant may end within its warm-up
    assert config.from_dict({"model": {"n_experts": 8, "top_k": 8}}).model.top_k == 8
    assert (
        config.from_dict(
            {
                "model": {
                    "n_experts": 8,
                    "top_k": 1,
                    "load_balance_weight": 0,
                    "router_z_weight": 0,
                }
            }
        ).model.n_experts
        == 8
    )
    assert config.from_dict({}) == config.Experiment()


def test_derived_fields():
    model = config.Model()
    assert (model.n_kv_heads, model.head_dim, model.init_std) == (16, 128, 0.02)
    assert config.Model(d_model=512, n_heads=8).init_std == pytest.approx(0.04)
    assert config.Model(d_model=128, n_heads=8).init_std == pytest.approx(0.08)
    chosen = config.Model(n_kv_heads=4, head_dim=64, init_std=0.1)
    assert (chosen.n_kv_heads, chosen.head_dim, chosen.init_std) == (4, 64, 0.1)
    assert (
        config.Experiment(global_batch=8, data=config.Data(seq_len=32)).tokens_per_step
        == 256
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"d_model": 32}, (2, 16, 0.16)),
        ({"d_model": 32, "init_std": 0.5}, (2, 16, 0.5)),
        ({"n_heads": 4}, (4, 2, 0.32)),
        ({"n_layers": 7}, (2, 4, 0.32)),
    ],
)
def test_a_resized_model_derives_anew_what_was_derived(changes, expected):
    model = config.Model(d_model=8, n_heads=2, init_std=0.0)
    resized = model.resized(**changes)
    found = (resized.n_kv_heads, resized.head_dim, resized.init_std)
    assert found == pytest.approx(expected)


def test_a_resized_model_keeps_what_was_set():
    model = config.Model(d_model=8, n_heads=4, n_kv_heads=2, head_dim=6, init_std=0.7)
    resized = model.resized(d_model=64, n_heads=8)
    assert (resized.n_kv_heads, resized.head_dim, resized.init_std) == (2, 6, 0.7)
