"""A study on this machine: every run once, whatever happens to the sweep."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from etils import epath

from sparsecod_jax.errors import ConfigError, Fenced, Preempted, SparsecodError
from sparsecod_jax.shell.stopping import SAME
from sparsecod_jax.storage import records
from sparsecod_jax.storage.buckets import LIMIT
from sparsecod_jax.storage.ownership import locked
from sparsecod_jax.storage.rundir import RunDir
from sparsecod_jax.study import run_local
from sparsecod_jax.study.run_local import sweep
from tests.support import process, study_files


def _starts(study: Path, name: str) -> int:
    return len(list((study / "runs" / name / "attempts").iterdir()))


def _command(spec: str, study: Path, *options: str) -> list[str]:
    """A sweep in a process of its own; `options` are Python's."""
    program = [sys.executable, *options, "-m", "sparsecod_jax"]
    return [*program, "sweep", f"--sweep={spec}", f"--workdir={study}"]


def test_runs_are_trained_once_and_shared_between_studies(tokens, tmp_path):
    analyze = {"scores": "profile", "sequences": 4, "seq_len": 16}
    spec = study_files.write(tmp_path, tokens, study_files.TWO, analyze=analyze)
    table = sweep(spec, str(tmp_path / "studies" / "a"), jobs=2)
    assert table == "flat-s0  finished\ndeep-s0  finished"
    a = tmp_path / "studies" / "a"
    for name in ("flat-s0", "deep-s0"):
        assert json.loads((a / "runs" / name / "final.json").read_text())["steps"] == 6
        assert (a / "runs" / name / "analysis" / "scores.json").exists()
    scores = a / "runs" / "flat-s0" / "analysis" / "scores.json"
    whole = records.read_record(epath.Path(scores))
    cut_off = whole | {"sequences": {}}
    records.write_record(epath.Path(scores), cut_off)
    assert sweep(spec, str(a)) == table
    assert records.read_record(epath.Path(scores))["sequences"] == whole["sequences"]
    (tmp_path / "other").mkdir()
    other = study_files.write(
        tmp_path / "other",
        tokens,
        '{"shallow": {"model.n_layers": 2}}',
        analyze=analyze,
    )
    assert sweep(other, str(tmp_path / "studies" / "b")) == "shallow-s0  finished"
    assert not (tmp_path / "studies" / "b" / "runs").exists()
    assert [_starts(a, name) for name in ("flat-s0", "deep-s0")] == [1, 1]
    with pytest.raises(ConfigError, match=r"holds another study \(.*arms.* differ\)"):
        sweep(other, str(a))


def test_killed_sweeps_go_on_with_every_run_once(tokens, tmp_path):
    """The sweep is killed, its run lives on, and the next sweep waits for it."""
    spec = study_files.write(tmp_path, tokens, study_files.TWO, steps=2000, every=200)
    study = tmp_path / "study"
    command = _command(spec, study)
    first = subprocess.Popen(command, cwd=process.ROOT)
    while not RunDir(study / "runs" / "flat-s0").newest_checkpoint():
        assert first.poll() is None
        time.sleep(0.2)
    first.kill()
    first.wait()
    assert subprocess.run(command, cwd=process.ROOT, check=False).returncode == 0
    assert "another process is at work" in (study / "logs" / "flat-s0.log").read_text()
    for name in ("flat-s0", "deep-s0"):
        lines = (study / "runs" / name / "metrics.jsonl").read_text().splitlines()
        steps = [json.loads(line)["step"] for line in lines]
        assert steps == list(range(1, 2001))
        assert _starts(study, name) == 1


def test_stops_at_a_checkpoint_when_asked_and_goes_on(tokens, tmp_path):
    spec = study_files.write(tmp_path, tokens, study_files.TWO, steps=400)
    study = tmp_path / "study"
    command = _command(spec, study)
    first = subprocess.Popen(
        command, cwd=process.ROOT, stderr=subprocess.PIPE, text=True
    )
    run = RunDir(study / "runs" / "flat-s0")
    while not run.newest_checkpoint():
        time.sleep(0.2)
    os.kill(first.pid, signal.SIGTERM)
    assert "SIGTERM came, 2 runs are not finished" in first.communicate()[1]
    assert first.returncode == Preempted.exit_code
    assert json.loads(run.status.read_text())["status"] == "preempted"
    with pytest.raises(
        Preempted,
        match="the time is over, 2 runs are not finished: start again to resume",
    ):
        sweep(spec, str(study), max_hours=1e-9)


def test_when_the_time_is_over_ctrl_c_must_come_twice_and_a_third_time_changes_nothing(
    tmp_path,
):
    sweeping = run_local._Sweep(None, None, None, [], [])  # pyright: ignore[reportArgumentType]
    sweeping._stopped_by = "the time is over"
    with sweeping._signals():
        for at_once in (False, True, True):
            os.kill(os.getpid(), signal.SIGINT)
            assert sweeping._kill_at_once is at_once
            time.sleep(2 * SAME * (not at_once))
    assert sweeping._stopped_by == "SIGINT came"


def test_data_in_a_bucket_that_can_not_be_reached_is_told_soon(tmp_path, monkeypatch):
    monkeypatch.setenv(
        "STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{process.free_port()}"
    )
    began = time.monotonic()
    with pytest.raises(SparsecodError, match="gs://bucket/tokens can't be reached"):
        sweep(
            study_files.write(tmp_path, "gs://bucket/tokens", study_files.TWO),
            str(tmp_path / "study"),
        )
    assert time.monotonic() - began < LIMIT
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_asked_once_its_run_saves_and_asked_twice_it_ends_at_once(
    tokens, tmp_path, number
):
    """The run is stopped, so that it can't save."""
    spec = study_files.write(tmp_path, tokens, study_files.TWO, steps=10**5, every=10)
    study = tmp_path / "study"
    command = _command(spec, study)
    first = subprocess.Popen(
        command, cwd=process.ROOT, stderr=subprocess.PIPE, text=True
    )
    run = RunDir(study / "runs" / "flat-s0")
    while not run.newest_checkpoint():
        assert first.poll() is None
        time.sleep(0.2)
    (attempt,) = run.attempts.iterdir()
    pid = json.loads(attempt.read_text())["pid"]
    os.kill(pid, signal.SIGSTOP)
    first.send_signal(number)
    time.sleep(1)
    assert first.poll() is None  # it waits for its run to save
    first.send_signal(number)
    _, errors = first.communicate(timeout=20)
    assert f"{number.name} came, 2 runs are not finished" in errors
    assert first.returncode == Preempted.exit_code
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_runs_see_nothing_of_the_working_folder(tokens, tmp_path):
    spec = study_files.write(tmp_path, tokens, '{"shallow": {"model.n_layers": 2}}')
    folder = tmp_path / "shadow"
    folder.mkdir()
    (folder / "configs").symlink_to(process.ROOT / "configs")  # which the study names
    for name in ("random", "numpy", "jax"):
        (folder / f"{name}.py").write_text(
            "raise SystemExit('the working folder was imported')"
        )
    command = _command(spec, tmp_path / "study", "-P")
    environment = os.environ | {"PYTHONPATH": str(process.ROOT)}
    ended = subprocess.run(command, cwd=folder, env=environment, check=False)
    assert ended.returncode == 0


def test_runs_that_diverge_are_named_and_the_others_finish(tokens, tmp_path):
    wild = {"optimizer.peak_lr": 1e30, "execution.max_skipped_updates": 0}
    arms = repr({"wild": wild, "tame": {}})
    spec = study_files.write(tmp_path, tokens, arms)
    with pytest.raises(SparsecodError, match=r"1 of 2 runs did not finish \(wild-s0\)"):
        sweep(spec, str(tmp_path / "study"))
    for name, expected in {"wild-s0": "diverged", "tame-s0": "finished"}.items():
        run = RunDir(tmp_path / "study" / "runs" / name)
        assert json.loads(run.status.read_text())["status"] == expected
    log = tmp_path / "study" / "logs" / "wild-s0.log"
    assert "were not finite" in log.read_text()


def test_one_sweep_at_a_time(tokens, tmp_path):
    spec = study_files.write(tmp_path, tokens, study_files.TWO)
    listed = sweep(spec, str(tmp_path / "study"), dry_run=True).splitlines()
    assert listed[1].startswith("deep-s0  --config.")
    assert not (tmp_path / "study").exists()
    (tmp_path / "study").mkdir()
    with locked(epath.Path(tmp_path / "study")), pytest.raises(Fenced):
        sweep(spec, str(tmp_path / "study"))
