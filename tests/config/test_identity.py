"""What makes two runs the same run, asked of every field there is."""

import dataclasses
import json

import pytest

from sparsecod_jax import config
from sparsecod_jax.config.experiment import added
from sparsecod_jax.config.identity import identity, identity_fields
from tests.support import tiny_configs

DECIDES = {
    "model.d_model": 48,
    "model.n_layers": 4,
    "model.n_heads": 8,
    "model.n_kv_heads": 4,
    "model.head_dim": 6,
    "model.d_ff": 64,
    "model.n_experts": 16,
    "model.top_k": 4,
    "model.normalize_gates": True,
    "model.shared_expert": True,
    "model.d_shared": 24,
    "model.load_balance_weight": 0.1,
    "model.router_z_weight": 0.0,
    "model.vocab_size": 320,
    "model.rope_theta": 5e5,
    "model.norm_eps": 1e-6,
    "model.init_std": 0.03,
    "model.layer_norm_scaling": True,
    "model.document_masking": True,
    "model.compute_dtype": "bfloat16",
    "model.residual_dtype": "bfloat16",
    "data.seq_len": 64,
    "data.seed": 1,
    "optimizer.peak_lr": 1e-3,
    "optimizer.b1": 0.8,
    "optimizer.b2": 0.99,
    "optimizer.eps": 1e-9,
    "optimizer.weight_decay": 0.2,
    "optimizer.decayed": ["matrices"],
    "optimizer.clip_norm": 2.0,
    "schedule.kind": "constant",
    "schedule.warmup_steps": 3,
    "schedule.final_fraction": 0.2,
    "seed": 1,
    "steps": 7,
    "global_batch": 16,
}
OF_DENSE = {"model.ffn_scale": 0.5}  # refused in a mixture
OUTSIDE = {
    "data.path": "elsewhere",
    "data.source": "stdlib",
    "data.tokenizer": "bytes",
    "mesh.data": 2,
    "mesh.fsdp": 2,
    "mesh.expert": 2,
    "mesh.tensor": 2,
    "execution.accumulation": 2,
    "execution.remat": "none",
    "execution.attention": "reference",
    "execution.unroll": True,
    "execution.max_skipped_updates": 3,
    "evaluation.every": 3,
    "evaluation.seq_len": 16,
    "evaluation.batch_size": 16,
    "evaluation.max_tokens": 100,
    "checkpoint.every": 3,
    "checkpoint.keep": 1,
    "checkpoint.keep_every": 2,
    "log.every": 3,
    "log.moments_every": 3,
}


def _set(values, name, value):
    *sections, field = name.split(".")
    for section in sections:
        values = values[section]
    assert values[field] != value
    values[field] = value


def _mixture():
    return tiny_configs.experiment(model={"n_experts": 8, "top_k": 2})


def test_json_and_back_with_every_field_changed():
    values = config.to_dict(_mixture())
    for name, value in {**DECIDES, **OUTSIDE}.items():
        _set(values, name, value)
    experiment = config.from_dict(values)
    assert config.to_dict(experiment) == values
    assert (
        config.from_dict(json.loads(json.dumps(config.to_dict(experiment))))
        == experiment
    )


def _identity(experiment, fingerprint="abc"):
    return identity(identity_fields(experiment, fingerprint))


def _changed(changes, experiment):
    values = config.to_dict(experiment)
    for name, value in changes.items():
        _set(values, name, value)
    return config.from_dict(values)


def test_every_field_is_inside_or_outside_the_identity():
    assert {*DECIDES, *OF_DENSE, *OUTSIDE} == set(
        config.flatten(config.to_dict(tiny_configs.experiment()))
    )


TOGETHER = ("model.shared_expert", "model.d_shared")  # one without the other is refused


@pytest.mark.parametrize(
    "names",
    [TOGETHER, *((name,) for name in (*DECIDES, *OF_DENSE) if name not in TOGETHER)],
    ids=" ".join,
)
def test_what_decides_the_numbers_changes_the_identity(names):
    base = tiny_configs.experiment() if names[0] in OF_DENSE else _mixture()
    changed = _changed({name: (DECIDES | OF_DENSE)[name] for name in names}, base)
    before, after = (
        identity_fields(experiment, "abc") for experiment in (base, changed)
    )
    assert identity(before) != identity(after)
    assert tuple(field for field in before if before[field] != after[field]) == names


@pytest.mark.parametrize(("name", "value"), OUTSIDE.items(), ids=OUTSIDE)
def test_how_it_is_carried_out_does_not_change_the_identity(name, value):
    assert _identity(_changed({name: value}, _mixture())) == _identity(_mixture())


def test_the_identity_depends_on_the_data_itself():
    experiment = tiny_configs.experiment()
    assert _identity(experiment, "abc") == _identity(experiment, "abc")
    assert _identity(experiment, "abc") != _identity(experiment, "abd")


@dataclasses.dataclass(frozen=True)
class Newer(config.Model):
    """A model of a later version."""

    variant: str = added("none")


def test_an_added_field_is_part_of_the_identity_only_where_it_changes_something():
    today = identity_fields(config.Experiment(model=config.Model()), "data")
    same = identity_fields(config.Experiment(model=Newer()), "data")
    other = identity_fields(config.Experiment(model=Newer(variant="x")), "data")
    assert same == today
    assert other == {**today, "model.variant": "x"}


def test_code_must_name_the_added_fields_that_it_knows():
    assert Newer().unknown_to(()) == []
    assert Newer(variant="x").unknown_to(()) == ["variant"]
    assert Newer(variant="x").unknown_to(("variant",)) == []
    assert config.Model(n_layers=3).unknown_to(()) == []
