"""A trained model is found, and laid out over the devices, without a trace in its run."""

import dataclasses
import os
from pathlib import Path

import pytest

from sparsecod_jax.errors import ConfigError
from sparsecod_jax.pretrained.exporting import export
from sparsecod_jax.pretrained.importing import import_model
from sparsecod_jax.pretrained.load import at_least_float32, find_model, load_model
from sparsecod_jax.storage.records import read_json, read_record, write_record
from tests.support import saved_runs, tiny_configs


def _times(run):
    return sorted(
        (str(path), path.stat().st_mtime_ns) for path in Path(run.path).rglob("*")
    )


def test_a_run_is_loaded_over_all_devices_and_not_touched(tmp_path):
    run = saved_runs.run(
        tmp_path / "run",
        dataclasses.replace(tiny_configs.MODEL, compute_dtype="bfloat16"),
    )
    before = _times(run)
    source = find_model(str(run.path))
    model = load_model(source)
    assert _times(run) == before
    assert (model.step, len(model.weights), source.max_seq_len) == (3, 16, 32)
    assert (
        source.model.compute_dtype,
        model.net.cfg.compute_dtype,
        model.net.cfg.residual_dtype,
    ) == ("bfloat16", "float32", "float32")
    gate = model.params["blocks"]["ffn"]["gate"]
    assert len(gate.sharding.device_set) == 8
    assert gate.addressable_shards[0].data.size * 8 == gate.size
    assert source.tokenizer().ids("a") == [97]


def test_the_same_weights_have_one_digest_wherever_they_are(tmp_path):
    run = saved_runs.run(tmp_path / "run", tiny_configs.MODEL)
    export(str(run.path), str(tmp_path / "hf"))
    import_model(str(tmp_path / "hf"), str(tmp_path / "imported"))
    sources = [
        find_model(str(run.path)),
        find_model(hf=str(tmp_path / "hf")),
        find_model(str(tmp_path / "imported")),
    ]
    assert len({load_model(source).weights for source in sources}) == 1
    assert [source.experiment is None for source in sources] == [False, True, True]
    other = saved_runs.run(tmp_path / "other", tiny_configs.MODEL, seed=1)
    assert (
        load_model(find_model(str(other.path))).weights
        != load_model(sources[0]).weights
    )


def test_computes_in_at_least_float32():
    narrow = at_least_float32(
        dataclasses.replace(
            tiny_configs.MODEL, compute_dtype="bfloat16", residual_dtype="bfloat16"
        )
    )
    assert (
        narrow.cfg.compute_dtype,
        narrow.cfg.residual_dtype,
        narrow.kernels.attention,
    ) == ("float32", "float32", "xla")
    wide = at_least_float32(
        dataclasses.replace(tiny_configs.MODEL, residual_dtype="float64")
    )
    assert (
        wide.cfg.compute_dtype,
        wide.cfg.residual_dtype,
        wide.kernels.attention,
    ) == ("float64", "float64", "reference")


def test_float64_is_not_pretended(tmp_path):
    run = saved_runs.run(
        tmp_path / "run",
        dataclasses.replace(tiny_configs.MODEL, compute_dtype="float64"),
    )
    with pytest.raises(ConfigError, match="JAX_ENABLE_X64=1"):
        load_model(find_model(str(run.path)))


@pytest.mark.parametrize("places", [{}, {"workdir": "a", "hf": "b"}])
def test_one_place_is_named(places):
    with pytest.raises(ConfigError, match="give either --workdir or --hf"):
        find_model(**places)


def test_what_is_no_trained_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no run: give a --workdir"):
        find_model(str(tmp_path))
    run = saved_runs.run(tmp_path / "run", tiny_configs.MODEL)
    write_record(
        run.manifest, read_record(run.manifest) | {"tokenizer_digest": "another"}
    )
    with pytest.raises(
        ConfigError,
        match=r"tokenizer\.json is not the tokenizer that this run was trained with:"
        " copy the one of",
    ):
        find_model(str(run.path)).tokenizer()
    Path(run.tokenizer).unlink()
    os.mkfifo(run.tokenizer)
    with pytest.raises(ConfigError, match=r"tokenizer\.json is not a plain file"):
        find_model(str(run.path)).tokenizer()
    Path(run.tokenizer).unlink()
    with pytest.raises(
        ConfigError, match=r"has no tokenizer\.json: copy the one of its data there"
    ):
        find_model(str(run.path)).tokenizer()
    run.checkpoints.rmtree()
    with pytest.raises(
        ConfigError, match="holds no checkpoint any more: put back a copy of one"
    ):
        load_model(find_model(str(run.path)))
    run.committed.unlink()
    with pytest.raises(ConfigError, match="has no checkpoint: train it first"):
        load_model(find_model(str(run.path)))


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("model", "norm_eps", 2e-5),
        ("model", "rope_theta", 20000.0),
        ("model", "ffn_scale", 2.0),
        ("data", "seq_len", 33),
    ],
)
def test_a_config_that_is_not_the_one_of_the_checkpoint_is_refused_by_field(
    tmp_path, section, name, value
):
    run = saved_runs.run(tmp_path / "run", tiny_configs.MODEL)
    values = read_record(run.config)
    was = values[section][name]
    write_record(run.config, values | {section: values[section] | {name: value}})
    change = rf"{section}\.{name}={value} instead of {was}"
    model = r"config\.json holds another model than checkpoint 3 was made with"
    with pytest.raises(ConfigError, match=rf"{model} \({change}\): restore it"):
        load_model(find_model(str(run.path)))


def test_how_a_run_was_to_be_saved_and_logged_may_have_changed(tmp_path):
    run = saved_runs.run(tmp_path / "run", tiny_configs.MODEL)
    values = read_record(run.config)
    write_record(
        run.config,
        values
        | {
            "checkpoint": values["checkpoint"] | {"every": 7},
            "log": values["log"] | {"every": 7},
        },
    )
    assert load_model(find_model(str(run.path))).step == 3


def test_a_config_that_was_changed_is_named(tmp_path):
    run = saved_runs.run(tmp_path / "run", tiny_configs.MODEL)
    run.config.write_text(run.config.read_text().replace("1e-05", "1e-06"))
    with pytest.raises(
        ConfigError,
        match=r"config\.json was changed after it was written: restore it from a copy",
    ):
        find_model(str(run.path))


def test_a_damaged_checkpoint_is_refused_and_left_where_it_is(tmp_path):
    run = saved_runs.run(tmp_path / "run", tiny_configs.MODEL)
    for file in Path(run.checkpoints / "3" / "state").rglob("d/*"):
        file.write_bytes(bytes(byte ^ 1 for byte in file.read_bytes()))
    with pytest.raises(ConfigError, match=r"no checkpoint .* can be used"):
        load_model(find_model(str(run.path)))
    assert (run.checkpoints / "3").exists()
    assert read_json(run.status)["status"] == "finished"
