"""Compiled programs are kept where the user's caches are, or where JAX was told."""

import os
from pathlib import Path

import jax
import pytest

from sparsecod_jax.parallel.compilation import keep_programs
from sparsecod_jax.storage.rundir import RunDir
from tests.support import process, tiny_configs


@pytest.fixture
def unset(monkeypatch):
    """No folder is set, whatever a subcommand of another test left; restored afterwards."""
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", None)
    yield monkeypatch
    jax.config.update("jax_compilation_cache_dir", before)


def test_in_the_folder_for_caches(unset, tmp_path):
    unset.setenv("XDG_CACHE_HOME", str(tmp_path))
    keep_programs()
    folder = jax.config.values["jax_compilation_cache_dir"]
    assert folder == f"{tmp_path}/sparsecod_jax/xla"


def test_in_the_home_directory_by_default(unset, tmp_path):
    unset.delenv("XDG_CACHE_HOME")
    unset.setenv("HOME", str(tmp_path))
    keep_programs()
    folder = jax.config.values["jax_compilation_cache_dir"]
    assert folder == f"{tmp_path}/.cache/sparsecod_jax/xla"


def test_where_jax_was_told(unset, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    keep_programs()
    assert jax.config.values["jax_compilation_cache_dir"] == str(tmp_path)


def test_the_second_run_finds_the_program_of_the_first(tokens, tmp_path):
    """In the tests' own folder for caches; and it computes the same bits."""
    experiment = tiny_configs.experiment(
        steps=3,
        data={"path": str(tokens)},
        model={"d_ff": 40},
        evaluation={"max_tokens": 64},
    )
    kept = Path(os.environ["XDG_CACHE_HOME"]) / "sparsecod_jax" / "xla"
    before = set(kept.glob("jit_train_step-*"))
    programs, metrics = [], []
    for name in ("first", "second"):
        process.finish(process.start(experiment, tmp_path / name))
        programs.append(set(kept.glob("jit_train_step-*")) - before)
        lines = RunDir(tmp_path / name).read_metrics()
        metrics.append(
            [
                {
                    name: value
                    for name, value in line.items()
                    if name != "tokens_per_second"
                }
                for line in lines
            ]
        )
    assert len(programs[0]) == 1
    assert programs[1] == programs[0]
    assert metrics[1] == metrics[0]
