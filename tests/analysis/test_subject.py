"""Models and sequences as they are loaded."""

import dataclasses
import shutil
from pathlib import Path

import jax
import numpy as np
import plain
import pytest
import subjects
import tiny

from sparsecod_jax import config
from sparsecod_jax.analysis import network
from sparsecod_jax.analysis.subject import analysed, draw, load, per_sequence
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.files import read_json, write_json
from sparsecod_jax.rundir import RunDir


def _times(run):
    return sorted((str(path), path.stat().st_mtime_ns) for path in Path(run.path).rglob("*"))


def test_loads_what_was_trained_over_all_devices(run):
    before = _times(run)
    subject = load(run, np.zeros((2, 8), np.int32))
    assert _times(run) == before
    assert subject.step == 20
    assert len(subject.weights) == 16
    assert (subject.cfg.compute_dtype, subject.cfg.residual_dtype) == ("float32", "float32")
    gate = subject.params["blocks"]["ffn"]["gate"]
    assert len(gate.sharding.device_set) == 8
    assert gate.addressable_shards[0].data.size * 8 == gate.size


def test_float64_is_not_pretended(run, tmp_path):
    copy = RunDir(tmp_path / "copy")
    shutil.copytree(run.path, copy.path)
    experiment = config.from_dict(read_json(run.config))
    wide = dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, compute_dtype="float64"))
    write_json(copy.config, config.to_dict(wide))
    with pytest.raises(ConfigError, match="JAX_ENABLE_X64=1"):
        load(copy, np.zeros((2, 8), np.int32))


def test_scores_are_computed_in_at_least_float32():
    mixed = tiny.experiment(model={"compute_dtype": "bfloat16", "residual_dtype": "bfloat16"}, execution={"attention": "auto"})
    found = analysed(mixed)
    assert (found.model.compute_dtype, found.model.residual_dtype, found.execution.attention) == ("float32", "float32", "xla")
    wide = analysed(tiny.experiment(model={"residual_dtype": "float64"}))
    assert (wide.model.compute_dtype, wide.model.residual_dtype, wide.execution.attention) == ("float64", "float64", "reference")


def test_tokens_the_model_does_not_know_are_refused(run):
    with pytest.raises(ConfigError, match="reach from 0 to 304: use ids from 0 to 303"):
        load(run, np.array([[0, 304]], np.int32))


def test_a_run_without_a_checkpoint_is_refused(run, tmp_path):
    empty = RunDir(tmp_path / "empty")
    empty.path.mkdir()
    shutil.copy(run.config, empty.config)
    with pytest.raises(ConfigError, match="has no checkpoint: train it first"):
        load(empty, np.zeros((2, 8), np.int32))


def test_a_damaged_checkpoint_is_refused_and_left_where_it_is(run, tmp_path):
    copy = RunDir(tmp_path / "copy")
    shutil.copytree(run.path, copy.path)
    for file in Path(copy.checkpoints / "20" / "state").rglob("d/*"):
        file.write_bytes(bytes(byte ^ 1 for byte in file.read_bytes()))
    with pytest.raises(ConfigError, match=r"no checkpoint .* can be used"):
        load(copy, np.zeros((2, 8), np.int32))
    assert (copy.checkpoints / "20").exists()


def test_draws_different_windows_of_the_split(run):
    tokens = draw(run, "validation", 6, 16, seed=0)
    assert tokens.shape == (6, 16)
    assert len({row.tobytes() for row in tokens}) == 6
    np.testing.assert_array_equal(tokens, draw(run, "validation", 6, 16, seed=0))
    assert not np.array_equal(tokens, draw(run, "validation", 6, 16, seed=1))
    assert not np.array_equal(tokens, draw(run, "train", 6, 16, seed=0))
    with pytest.raises(ConfigError, match=r"the validation split has \d+ windows of 16 tokens, not 9999: lower --sequences or --seq_len"):
        draw(run, "validation", 9999, 16, seed=0)


@pytest.mark.parametrize("mesh", [(1, 1, 1, 1), (2, 2, 1, 2)])
def test_each_sequence_is_measured_once_and_in_order(mesh, monkeypatch):
    """Seven sequences, four at a time where there are four devices, else two."""
    cfg = tiny.MODEL
    tokens, params = subjects.tokens(cfg, sequences=7), tiny.init(cfg)
    monkeypatch.setattr("sparsecod_jax.analysis.subject.STATES_BYTES", 2 * 4 * 12 * 32 * 8 // mesh[0])
    with subjects.analysed(cfg, tokens, params, mesh=mesh) as subject:
        sizes = [len(rows.tokens) for rows in subject.rows(tokens)]

        def measure(rows, states_LBTD):
            return np.array([network.tail_losses(subject.net, subject.params, states_LBTD[1], 1, rows)])

        found = per_sequence(subject, tokens, measure)
    assert sizes == ([4, 4] if len(jax.devices()[: int(np.prod(mesh))]) > 1 else [2, 2, 2, 2])
    expected = plain.losses(params, plain.states(params, tokens, cfg)[-1], tokens, cfg)
    np.testing.assert_allclose(found, expected[None], rtol=1e-10)


def test_documents_are_kept_apart():
    cfg = dataclasses.replace(tiny.MODEL, document_masking=True)
    tokens = subjects.tokens(cfg)
    tokens[:, 4] = 3
    other = tokens.copy()
    other[:, :4] = (tokens[:, :4] + 1) % cfg.vocab_size
    ends = []
    for each in (tokens, other):
        with subjects.analysed(cfg, each, tiny.init(cfg), eos_id=3) as subject:
            rows = next(subject.rows(each))
            ends.append(np.asarray(network.states(subject.net, subject.params, rows.tokens, rows.segments)[-1, :, 5:]))
    np.testing.assert_array_equal(*ends)
