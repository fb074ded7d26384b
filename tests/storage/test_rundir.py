"""What a run directory holds, whose it is, and what is left after a crash."""

import contextlib
import subprocess
import sys

import pytest
from etils import epath

from sparsecod_jax import config
from sparsecod_jax.config.identity import identity_fields
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.storage import journal, unfinished
from sparsecod_jax.storage.attempts import claim
from sparsecod_jax.storage.records import (
    read_json,
    read_record,
    write_json,
    write_record,
)
from sparsecod_jax.storage.rundir import RunDir, check_identity, find_runs
from tests.support.holding import holding


@pytest.fixture
def run(tmp_path):
    return RunDir(epath.Path(tmp_path) / "run")


@pytest.fixture
def holder(run):
    """Another process that owns the run."""
    with holding(run.path) as process:
        yield process


def test_a_killed_attempt_is_stopped_and_a_live_one_is_running(run, holder):
    """Nobody knows about processes of another host."""
    run.set_status("running")
    record = read_record(run.status)
    dead = _dead_process()
    write_json(run.status, record | {"pid": holder.pid})
    assert run.read_status() == "running"

    # The lock is held, perhaps by a process of another container.
    write_json(run.status, record | {"pid": dead})
    assert run.read_status() == "running"

    holder.kill()
    holder.wait()
    assert run.read_status() == "stopped"

    write_json(run.status, record | {"pid": dead, "host": "elsewhere"})
    assert run.read_status() == "running"
    run.set_status("preempted")
    assert run.read_status() == "preempted"

    # As earlier versions wrote it.
    write_json(run.status, {"status": "running", "time": 1.0})
    assert run.read_status() == "running"


@pytest.mark.parametrize(
    "pid", [{}, {"pid": None}, {"pid": "7"}, {"pid": 10**30}, {"pid": 0}, {"pid": -1}]
)
def test_a_status_without_a_process_stops_nobody(run, pid):
    run.path.mkdir()
    run.set_status("running")
    record = read_record(run.status)
    del record["pid"]
    write_json(run.status, record | pid)
    assert run.read_status() == "running"


def _dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize(
    "status",
    [
        '{"status": "finishee", "time": 1}',
        '{"time": 1}',
        '{"status": ["running"]}',
        "[1]",
        "",
    ],
)
def test_a_status_that_can_not_be_read_stops_nobody(run, status):
    run.path.mkdir()
    run.status.write_text(status)
    assert run.read_status() == "damaged"


def test_status(run):
    run.path.mkdir()
    run.set_status("running")
    run.set_status("diverged", reason="too many")
    status = read_json(run.status)
    assert (status["status"], status["reason"]) == ("diverged", "too many")
    assert status["time"] > 1.7e9


@pytest.mark.parametrize(
    "cut", ["", '{"step": 3', '{"step": 3, "loss": [1.0, ', "\0\0\0\0"]
)
def test_a_line_cut_off_by_a_crash_is_left_out(run, cut):
    run.path.mkdir()
    run.metrics.write_text(
        '{"step": 1, "loss": 2.5}\n{"step": 2, "loss": null}\n' + cut
    )
    assert run.read_metrics() == [{"step": 1, "loss": 2.5}, {"step": 2, "loss": None}]


def test_no_metrics_yet(run):
    assert run.read_metrics() == []


def test_another_identity_is_refused_by_field(run):
    fields = identity_fields(config.Experiment(), "abc")
    check_identity(run, fields)  # a new run
    run.path.mkdir()
    check_identity(run, fields)
    write_json(run.manifest, {"identity_fields": fields})
    check_identity(run, fields)
    changed = {**fields, "steps": 5, "optimizer.peak_lr": 1e-2}
    del changed["model.rope_theta"]
    with pytest.raises(ConfigError) as caught:
        check_identity(run, changed | {"model.experts": 8})
    assert str(caught.value) == (
        f"{run.path} holds another run (model.experts was None, is 8, "
        "model.rope_theta was 10000.0, is None, optimizer.peak_lr was 0.0004, is 0.01, "
        "steps was 19074, is 5): undo the change or choose another --workdir"
    )


FIELDS = {"steps": 5}


def _begun(run) -> None:
    """A directory as an attempt leaves it that was killed before its first checkpoint."""
    with claim(run):
        write_record(run.config, {"checkpoint": {"every": 2}})
        write_record(run.manifest, {"identity_fields": FIELDS})
        run.set_status("running")
        lines = [journal.line({"step": step}) for step in range(1, 5)]
        run.metrics.write_text("".join(lines))


@pytest.mark.parametrize(
    "left",
    [
        [],
        ["attempts"],
        ["attempts/0001.json"],
        ["attempts/0001.json", unfinished.UNFINISHED + "00"],
    ],
)
def test_a_process_killed_at_its_first_record_does_not_stop_the_next(run, left):
    for name in left:
        path = run.path / name
        (path if name == "attempts" else path.parent).mkdir(parents=True, exist_ok=True)
        if not path.is_dir():
            path.write_bytes(b"")
    check_identity(run, FIELDS)


def test_a_launchers_status_of_a_run_that_never_began_does_not_stop_the_run(run):
    run.path.mkdir()
    run.set_status("failed", reason="no node")
    check_identity(run, FIELDS)


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "tokenizer.json",
        "metrics.jsonl",
        "status.json",
        "manifest.json",
        "attempts/notes.txt",
        "notes~",
    ],
)
def test_a_folder_with_somebody_elses_files_is_refused(run, name):
    """Also with files of the names that ours have."""
    (run.path / name).parent.mkdir(parents=True)
    (run.path / name).write_text('{"status": "mine"}')
    problem = "/run holds files but not a run"
    remedy = r"choose another --workdir, a folder that is new or empty$"
    with pytest.raises(ConfigError, match=f"{problem}: {remedy}"):
        check_identity(run, FIELDS)


def test_a_file_where_the_run_should_be_is_refused(run):
    run.path.write_text("")
    with pytest.raises(ConfigError, match=r"/run is a file: choose another --workdir"):
        check_identity(run, FIELDS)


@pytest.mark.parametrize("left", ["checkpoints/2/data", "metrics.jsonl", "final.json"])
def test_a_run_without_its_manifest_is_never_begun_again(run, left):
    _begun(run)
    for path in (run.manifest, run.metrics):
        path.unlink()
    run.checkpoints.mkdir()
    check_identity(run, {"steps": 6})  # nothing was found out yet
    (run.path / left).parent.mkdir(parents=True, exist_ok=True)
    (run.path / left).write_text("{}")
    name = left.split("/")[0]
    problem = rf"holds {name} of a run, but no manifest\.json .*"
    with pytest.raises(ConfigError, match=f"{problem}: put it back from a copy"):
        check_identity(run, {"steps": 6})


def test_a_run_whose_checkpoints_are_gone_is_never_begun_again(run):
    """Unless it is finished: then they may have been deleted to save room.

    A run that never had a checkpoint begins again.
    """
    _begun(run)
    check_identity(run, FIELDS)
    write_record(run.committed, {"first_step": 2})
    run.checkpoints.mkdir()  # as where nothing is mounted
    problem = r"/checkpoints is missing or empty, .*"
    remedy = "mount it or put it back, or choose another --workdir"
    with pytest.raises(ConfigError, match=f"{problem}: {remedy}"):
        check_identity(run, FIELDS)
    (run.checkpoints / "2").mkdir()
    check_identity(run, FIELDS)
    run.checkpoints.rmtree()
    write_record(run.final, {"steps": 4})
    check_identity(run, FIELDS)


@pytest.mark.parametrize(
    ("every", "status", "refused"),
    [(2, "running", True), (4, "running", False), (100, "preempted", True)],
)
def test_whether_a_run_of_an_earlier_version_had_checkpoints_follows_from_its_lines(
    run, every, status, refused
):
    _of_an_earlier_version(run, status, every)
    run.metrics.write_text("".join(f'{{"step": {step}}}\n' for step in range(1, 5)))
    outcome = contextlib.nullcontext()
    if refused:
        outcome = pytest.raises(ConfigError, match="missing or empty")
    with outcome:
        check_identity(run, FIELDS)


def _of_an_earlier_version(run, status: str, every: int = 2) -> None:
    run.attempts.mkdir(parents=True)
    write_json(run.attempts / "0001.json", {"host": "here", "pid": 1, "time": 1.0})
    write_json(run.config, {"checkpoint": {"every": every}})
    write_json(run.manifest, {"identity_fields": FIELDS})
    write_json(run.status, {"status": status, "time": 1.0})


def test_a_run_of_an_earlier_version_whose_first_save_was_cut_off_begins_again(run):
    _of_an_earlier_version(run, "running")
    run.metrics.write_text("".join(f'{{"step": {step}}}\n' for step in range(1, 5)))
    (run.checkpoints / "2.orbax-checkpoint-tmp-17").mkdir(parents=True)
    check_identity(run, FIELDS)


def test_preempted_before_any_step_is_no_sign_of_a_checkpoint(run):
    """As a newer attempt writes it; earlier versions wrote it only once they had saved."""
    _of_an_earlier_version(run, "preempted")
    with pytest.raises(ConfigError, match="missing or empty"):
        check_identity(run, FIELDS)
    with claim(run):
        pass
    check_identity(run, FIELDS)


def _make(*paths):
    for path in paths:
        path.mkdir(parents=True)
        write_json(RunDir(path).config, {})


def _found(path):
    return [str(run.path.relative_to(path)) for run in find_runs(path)]


def test_find_runs(tmp_path):
    root = epath.Path(tmp_path)
    _make(
        root / "alone",
        root / "folder" / "b",
        root / "folder" / "a",
        root / "study" / "runs" / "d",
        root / "study" / "runs" / "c",
    )
    (root / "folder" / "notes").mkdir()
    (root / "folder" / "report.html").write_text("")
    (root / "alone" / "checkpoints").mkdir()
    assert _found(root / "alone") == ["."]
    assert _found(root / "folder") == ["a", "b"]
    assert _found(root / "study") == ["runs/c", "runs/d"]
    assert _found(root / "study" / "runs") == ["c", "d"]


@pytest.mark.parametrize("name", ["nowhere", "empty", "file"])
def test_find_no_runs(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    sentence = f"{name} holds no run: give a --workdir that `sparsecod train` wrote"
    with pytest.raises(ConfigError, match=sentence):
        find_runs(epath.Path(tmp_path) / name)
