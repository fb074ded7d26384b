"""Who owns a run directory, and what its files look like after a crash."""

import subprocess
import sys
from pathlib import Path

import pytest
from etils import epath

from sparsecod_jax import config
from sparsecod_jax.errors import ConfigError, Fenced
from sparsecod_jax.files import read_json, write_json
from sparsecod_jax.identity import identity_fields
from sparsecod_jax.rundir import Attempt, RunDir, check_identity, claim, find_runs

HOLD = """
import sys, time
from etils import epath
from sparsecod_jax.rundir import Attempt, RunDir, claim

with claim(RunDir(epath.Path(sys.argv[1]))) as attempt:
    print("holding", attempt.number, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def run(tmp_path):
    return RunDir(epath.Path(tmp_path) / "run")


@pytest.fixture
def holder(run):
    """Another process that owns the run."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(run.path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "holding 1\n"
    yield process
    process.kill()
    process.wait()


def _files(path):
    return {str(file): file.read_bytes() for file in Path(path).rglob("*") if file.is_file()}


def test_attempts_are_numbered(run):
    for number in (1, 2, 3):
        with claim(run) as attempt:
            assert attempt.number == number
            attempt.check_still_owner()
    assert [path.name for path in sorted(run.attempts.iterdir())] == ["0001.json", "0002.json", "0003.json"]
    assert set(read_json(run.attempts / "0003.json")) == {"host", "pid", "time"}


def test_a_second_process_is_turned_away_and_writes_nothing(run, holder):
    before = _files(run.path)
    with pytest.raises(Fenced, match=r"another process is at work in .*/run: wait for it") as caught, claim(run):
        pass
    assert caught.value.exit_code == 76
    assert _files(run.path) == before
    assert holder.poll() is None


def test_a_killed_process_leaves_the_run_free(run, holder):
    holder.kill()
    holder.wait()
    with claim(run) as attempt:
        assert attempt.number == 2


def test_two_runs_do_not_stand_in_each_others_way(run, holder):
    with claim(RunDir(run.path.parent / "other")) as attempt:
        assert attempt.number == 1


def test_the_owner_may_go_on_until_a_newer_attempt_appears(run):
    with claim(run) as attempt:
        attempt.check_still_owner()
        write_json(run.attempts / "0007.json", {})
        with pytest.raises(Fenced, match=r"attempt 7 took over .*: this attempt \(1\) stops"):
            attempt.check_still_owner()
    with claim(run) as attempt:
        assert attempt.number == 8


def test_a_process_that_sees_another_directory_is_told(run, tmp_path):
    with claim(run) as attempt, pytest.raises(ConfigError, match=r"^attempt 1 is not in .*/local as seen here: give a --workdir that all"):
        Attempt(RunDir(epath.Path(tmp_path) / "local"), attempt.number).check_still_owner()


def test_the_lock_is_freed_and_errors_pass_through_unchanged(run):
    """Also one that says "would block", as a print to a full pipe raises it: no other process is at fault."""
    with pytest.raises(BlockingIOError, match="stdout"), claim(run):
        raise BlockingIOError("write to stdout would block")
    with claim(run) as attempt:
        assert attempt.number == 2


def test_status(run):
    run.path.mkdir()
    run.set_status("running")
    run.set_status("diverged", reason="too many")
    status = read_json(run.status)
    assert (status["status"], status["reason"]) == ("diverged", "too many")
    assert status["time"] > 1.7e9


@pytest.mark.parametrize("cut", ["", '{"step": 3', '{"step": 3, "loss": [1.0, ', "\0\0\0\0"])
def test_a_line_cut_off_by_a_crash_is_left_out(run, cut):
    run.path.mkdir()
    run.metrics.write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "loss": null}\n' + cut)
    assert run.read_metrics() == [{"step": 1, "loss": 2.5}, {"step": 2, "loss": None}]


def test_no_metrics_yet(run):
    assert run.read_metrics() == []


def test_another_identity_is_refused_by_field(run):
    run.path.mkdir()
    fields = identity_fields(config.Experiment(), "abc")
    check_identity(run, fields)  # a new run
    write_json(run.manifest, {"identity_fields": fields})
    check_identity(run, fields)
    changed = {**fields, "steps": 5, "optimizer.peak_lr": 1e-2}
    del changed["model.rope_theta"]
    with pytest.raises(ConfigError) as caught:
        check_identity(run, changed | {"model.experts": 8})
    assert str(caught.value) == (
        f"{run.path} holds another run (model.experts was None, is 8, model.rope_theta was 10000.0, is None, "
        "optimizer.peak_lr was 0.0004, is 0.01, steps was 19074, is 5): undo the change or choose another --workdir"
    )


def _make(*paths):
    for path in paths:
        path.mkdir(parents=True)
        write_json(RunDir(path).config, {})


def _found(path):
    return [str(run.path.relative_to(path)) for run in find_runs(path)]


def test_find_runs(tmp_path):
    root = epath.Path(tmp_path)
    _make(root / "alone", root / "folder" / "b", root / "folder" / "a", root / "study" / "runs" / "d", root / "study" / "runs" / "c")
    (root / "folder" / "notes").mkdir()
    (root / "folder" / "report.html").write_text("")
    (root / "alone" / "checkpoints").mkdir()
    assert _found(root / "alone") == ["."]
    assert _found(root / "folder") == ["a", "b"]
    assert _found(root / "study") == ["runs/c", "runs/d"]
    assert _found(root / "study" / "runs") == ["c", "d"]


@pytest.mark.parametrize("place", ["nowhere", "empty", "file"])
def test_find_no_runs(tmp_path, place):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=rf"{place} holds no run: give a --workdir that `sparsecod train` wrote"):
        find_runs(epath.Path(tmp_path) / place)
