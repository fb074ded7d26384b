"""Saving, verifying, falling back, and never starting afresh by accident."""

import os
import resource
import shutil
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from sparsecod_jax import config
from sparsecod_jax.errors import ConfigError, Fenced, SparsecodError
from sparsecod_jax.parallel.sharding import make_mesh
from sparsecod_jax.storage.checkpoint import Checkpointer, check_room
from sparsecod_jax.storage.records import read_record
from sparsecod_jax.storage.rundir import RunDir


def _state(value: float):
    key = jax.random.key(int(value))
    return {
        "weights": jax.random.normal(key, (16, 24)),
        "deep": {"gain": jnp.full((8,), value)},
        "step": jnp.int32(value),
    }


def _abstract(state, sharding=None):
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return {
        "state": jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=sharding
            ),
            state,
        )
    }


@pytest.fixture
def run(tmp_path):
    return RunDir(epath.Path(tmp_path))


def _save(run, *steps, keep=3):
    checkpointer = Checkpointer(run, keep)
    for step in steps:
        checkpointer.save(step, {"state": _state(step)}, {"note": f"of step {step}"})
    checkpointer.close()


def _restore(run):
    checkpointer = Checkpointer(run, keep=3)
    try:
        restored = checkpointer.restore_latest(_abstract(_state(0)))
    finally:
        checkpointer.close()
    assert restored is not None
    return restored


def _equal(restored, step):
    return jax.tree.all(
        jax.tree.map(np.array_equal, restored.items["state"], _state(step))
    )


def test_round_trip_and_retention(run):
    checkpointer = Checkpointer(run, keep=3)
    assert checkpointer.restore_latest(_abstract(_state(0))) is None
    checkpointer.close()
    _save(run, 1, 2, 3, 4)
    restored = _restore(run)
    assert (restored.step, restored.record["note"]) == (4, "of step 4")
    assert _equal(restored, 4)
    assert sorted(int(path.name) for path in run.checkpoints.iterdir()) == [2, 3, 4]


def test_restores_onto_another_mesh(run):
    _save(run, 5)
    mesh = make_mesh(config.Mesh(2, 2, 1, 2))
    spread = NamedSharding(mesh, P(("data", "fsdp")))
    abstract = _abstract(_state(0), NamedSharding(mesh, P()))
    abstract["state"]["weights"] = jax.ShapeDtypeStruct(
        (16, 24), jnp.float32, sharding=spread
    )
    checkpointer = Checkpointer(run, keep=3)
    restored = checkpointer.restore_latest(abstract)
    checkpointer.close()
    assert restored is not None
    assert _equal(restored, 5)
    assert restored.items["state"]["weights"].sharding == spread


def test_one_flipped_bit_anywhere_gives_the_same_bits_or_the_older_step_by_name(
    run, tmp_path, capsys
):
    _save(run, 10, 20)
    files = sorted(
        path
        for path in (tmp_path / "checkpoints" / "20").rglob("*")
        if path.is_file() and path.stat().st_size
    )
    assert len(files) > 5
    rng = np.random.default_rng()
    outcomes = {"same": 0, "older": 0}
    for file in files:
        content = file.read_bytes()
        for _ in range(2):
            bit = int(rng.integers(8 * len(content)))
            flipped = bytearray(content)
            flipped[bit // 8] ^= 1 << (bit % 8)
            file.write_bytes(flipped)
            restored = _restore(run)
            output = capsys.readouterr().out
            if restored.step == 20:
                assert _equal(restored, 20), (
                    f"bit {bit} of {file} changed the state in silence"
                )
                outcomes["same"] += 1
                file.write_bytes(content)
            else:
                assert restored.step == 10
                assert _equal(restored, 10)
                assert "checkpoint 20 can't be used" in output
                outcomes["older"] += 1
                (moved,) = run.quarantine.iterdir()
                moved.rename(run.checkpoints / "20")
                file.write_bytes(content)
    print(outcomes)
    assert outcomes["older"] > 0


def test_a_truncated_newest_step_is_quarantined_and_can_be_saved_again(
    run, tmp_path, capsys
):
    _save(run, 10, 20)
    for file in (tmp_path / "checkpoints" / "20" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    assert _restore(run).step == 10
    assert "moved to" in capsys.readouterr().out
    assert (run.quarantine / "20-0").exists()
    _save(run, 20)
    assert _restore(run).step == 20


def test_an_empty_step_folder_is_not_a_checkpoint(run):
    _save(run, 10)
    (run.checkpoints / "30").mkdir()
    assert _restore(run).step == 10


def test_when_none_is_usable_it_stops(run, tmp_path):
    _save(run, 10, 20)
    for file in (tmp_path / "checkpoints").rglob("*"):
        if file.is_file():
            file.write_bytes(b"x")
    before = sorted((tmp_path / "checkpoints").rglob("*"))
    with pytest.raises(ConfigError, match="put back a copy of one"):
        _restore(run)
    assert sorted((tmp_path / "checkpoints").rglob("*")) == before


def test_another_model_is_refused_by_name_and_shape(run):
    _save(run, 10)
    checkpointer = Checkpointer(run, keep=3)
    wider = _state(0) | {"weights": jnp.zeros((16, 25))}
    with pytest.raises(
        ConfigError,
        match=r"state/weights as \[\[16, 24\], 'float32'\], the model needs \[\[16, 25\]",
    ):
        checkpointer.restore_latest(_abstract(wider))
    with pytest.raises(ConfigError, match=r"lacks state/extra"):
        checkpointer.restore_latest(_abstract(_state(0) | {"extra": jnp.zeros(3)}))
    checkpointer.close()


def test_a_save_that_fails_in_the_background_is_an_error(run):
    """A file may not grow beyond 300 kB, as on a full disk; the array needs 2 MB."""
    checkpointer = Checkpointer(run, keep=3)
    checkpointer.save(1, {"state": _state(1)}, {})
    checkpointer.wait()
    large = {"weights": jax.random.normal(jax.random.key(0), (512, 1024))}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))
    try:
        checkpointer.save(2, {"state": large}, {})
        with pytest.raises(
            SparsecodError, match=r"saving step 2 failed \(.*File too large"
        ):
            _poll(checkpointer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert _restore(run).step == 1
    checkpointer.save(3, {"state": _state(3)}, {})
    checkpointer.wait()
    checkpointer.close()
    assert _restore(run).step == 3


def _poll(checkpointer):
    """Asks as the loop does, without waiting, for at most a minute."""
    for _ in range(6000):
        checkpointer.raise_if_save_failed()
        time.sleep(0.01)


def test_a_refused_save_is_an_error(run):
    checkpointer = Checkpointer(run, keep=3)
    checkpointer.save(5, {"state": _state(5)}, {})
    with pytest.raises(SparsecodError, match="was not saved"):
        checkpointer.save(4, {"state": _state(4)}, {})
    checkpointer.close()


def test_a_step_is_on_the_disk_before_it_has_its_name(run, monkeypatch):
    """So that a power cut leaves no step of empty files.

    What was not forced to the disk by then may be empty.
    """
    synced: dict[str, int] = {}
    fsync, states = os.fsync, []

    def record(descriptor):
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        has_name = (run.checkpoints / "10").exists()
        if has_name:
            path, *_ = path.split(".orbax-checkpoint-tmp")
        states.append(has_name)
        synced[path] = len(states)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    _save(run, 10)
    written = [path for path in Path(run.checkpoints).rglob("*") if path.is_file()]
    before = [path for path, at in synced.items() if not states[at - 1]]
    names = [str(path.relative_to(run.checkpoints / "10")) for path in written]
    in_time = [path for path in before for name in names if path.endswith(name)]
    assert len(in_time) >= len(written) - 1
    assert {str(path) for path in [*written, Path(run.checkpoints)]} <= set(synced)


def test_a_step_is_not_committed_for_one_who_does_not_own_the_run_any_more(run):
    def overtaken():
        raise Fenced("attempt 2 took over")

    _save(run, 10)
    checkpointer = Checkpointer(run, keep=3, check_owner=overtaken)
    checkpointer.save(20, {"state": _state(20)}, {})
    with pytest.raises(
        SparsecodError, match=r"saving step 20 failed \(.*attempt 2 took over"
    ):
        checkpointer.wait()
    checkpointer.close()
    assert not (run.checkpoints / "20").exists()
    assert _restore(run).step == 10


def test_a_run_that_lost_its_checkpoints_is_not_begun_again(run):
    _save(run, 10)
    assert read_record(run.committed) == {"first_step": 10}
    (run.checkpoints / "10").rmtree()
    with pytest.raises(
        ConfigError,
        match="holds no checkpoint any more: put back a copy of one, or choose another --workdir",
    ):
        _restore(run)


@pytest.mark.parametrize("name", ["_CHECKPOINT_METADATA", "commit_success.txt"])
def test_what_is_written_last_may_be_lost(run, name):
    _save(run, 10)
    (run.checkpoints / "10" / name).write_bytes(b"")
    assert _equal(_restore(run), 10)


def test_a_store_that_tells_no_size_has_room(tmp_path, monkeypatch):
    tree = {"weights": np.zeros(4, np.float32)}
    monkeypatch.setattr(
        shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(0, 0, 0)
    )  # pyright: ignore
    check_room(epath.Path(tmp_path), tree)
    monkeypatch.setattr(
        shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(20, 5, 15)
    )  # pyright: ignore
    with pytest.raises(SparsecodError, match="make room there"):
        check_room(epath.Path(tmp_path), tree)
