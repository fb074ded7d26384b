"""Who owns a run directory, and what its files look like after a crash."""

import contextlib
import errno
import subprocess
import sys
from pathlib import Path

import pytest
from etils import epath

from sparsecod_jax import config
from sparsecod_jax.config.identity import identity_fields
from sparsecod_jax.errors import ConfigError, Fenced
from sparsecod_jax.storage import journal, unfinished
from sparsecod_jax.storage.records import (
    read_json,
    read_record,
    write_json,
    write_record,
)
from sparsecod_jax.storage.rundir import (
    Attempt,
    RunDir,
    check_identity,
    claim,
    find_runs,
)

HOLD = """
import sys, time
from etils import epath
from sparsecod_jax.storage.rundir import Attempt, RunDir, claim

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
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run.path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "holding 1\n"
    yield process
    process.kill()
    process.wait()


def _files(path):
    return {
        str(file): file.read_bytes() for file in Path(path).rglob("*") if file.is_file()
    }


def test_attempts_are_numbered(run):
    for number in (1, 2, 3):
        with claim(run) as attempt:
            assert attempt.number == number
            attempt.check_still_owner()
    assert [path.name for path in sorted(run.attempts.iterdir())] == [
        "0001.json",
        "0002.json",
        "0003.json",
    ]
    assert set(read_json(run.attempts / "0003.json")) == {
        "host",
        "pid",
        "time",
        "token",
    }


def test_a_second_process_is_turned_away_and_writes_nothing(run, holder):
    before = _files(run.path)
    with (
        pytest.raises(
            Fenced, match=r"another process is at work in .*/run: wait for it"
        ) as caught,
        claim(run),
    ):
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
        with pytest.raises(
            Fenced, match=r"attempt 7 took over .*: this attempt \(1\) stops"
        ):
            attempt.check_still_owner()
    with claim(run) as attempt:
        assert attempt.number == 8


def test_a_process_that_sees_another_directory_is_told(run, tmp_path):
    local = RunDir(epath.Path(tmp_path) / "local")
    with claim(run) as attempt:
        Attempt(run, attempt.number, attempt.token).check_shared()
        with pytest.raises(
            ConfigError,
            match=r"^attempt 1 is not in .*/local as seen here: give a --workdir that all",
        ):
            Attempt(local, attempt.number, attempt.token).check_shared()


@pytest.mark.parametrize("anew", [0, 1, 3])
def test_an_attempt_whose_directory_was_removed_or_made_anew_stops(run, anew):
    """Also where the new directory has as many attempts, or fewer."""
    for _ in range(2):
        with claim(run):
            pass
    with claim(run) as attempt:
        run.path.rmtree()
        for _ in range(anew):
            with claim(run):
                pass
        with pytest.raises(
            Fenced,
            match=r"/run was removed or replaced under attempt 3: it stops before writing more",
        ):
            attempt.check_still_owner()


def test_a_killed_attempt_is_stopped_and_a_live_one_is_running(run, holder):
    """Of another host nobody knows."""
    run.set_status("running")
    said = read_record(run.status)
    write_json(run.status, said | {"pid": holder.pid})
    assert run.read_status() == "running"
    write_json(run.status, said | {"pid": (dead := _dead_process())})
    assert (
        run.read_status() == "running"
    )  # the lock is held, perhaps by a process of another container
    holder.kill()
    holder.wait()
    assert run.read_status() == "stopped"
    write_json(run.status, said | {"pid": dead, "host": "elsewhere"})
    assert run.read_status() == "running"
    run.set_status("preempted")
    assert run.read_status() == "preempted"
    write_json(
        run.status, {"status": "running", "time": 1.0}
    )  # as earlier versions wrote it
    assert run.read_status() == "running"


@pytest.mark.parametrize(
    "pid", [{}, {"pid": None}, {"pid": "7"}, {"pid": 10**30}, {"pid": 0}, {"pid": -1}]
)
def test_a_status_without_a_process_stops_nobody(run, pid):
    run.path.mkdir()
    run.set_status("running")
    said = read_record(run.status)
    del said["pid"]
    write_json(run.status, said | pid)
    assert run.read_status() == "running"


def test_a_disk_that_does_not_answer_is_no_new_owner(run, monkeypatch):
    with claim(run) as attempt:
        with monkeypatch.context() as failing:
            failing.setattr(type(run.path), "read_bytes", _stale)
            with pytest.raises(OSError, match="Stale file handle"):
                attempt.check_still_owner()
        attempt.check_still_owner()


def _stale(path):
    raise OSError(errno.ESTALE, "Stale file handle", str(path))


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
        f"{run.path} holds another run (model.experts was None, is 8, model.rope_theta was 10000.0, is None, "
        "optimizer.peak_lr was 0.0004, is 0.01, steps was 19074, is 5): undo the change or choose another --workdir"
    )


FIELDS = {"steps": 5}


def _begun(run) -> None:
    """A directory as an attempt leaves it that was killed before its first checkpoint."""
    with claim(run):
        write_record(run.config, {"checkpoint": {"every": 2}})
        write_record(run.manifest, {"identity_fields": FIELDS})
        run.set_status("running")
        run.metrics.write_text(
            "".join(journal.line({"step": step}) for step in range(1, 5))
        )


@pytest.mark.parametrize(
    "left",
    [
        [],
        ["attempts"],
        ["attempts/0001.json"],
        ["attempts/0001.json", unfinished.UNFINISHED + "00"],
    ],
)
def test_a_process_killed_at_its_first_record_leaves_a_place_to_begin(run, left):
    for name in left:
        path = run.path / name
        (path if name == "attempts" else path.parent).mkdir(parents=True, exist_ok=True)
        if not path.is_dir():
            path.write_bytes(b"")
    check_identity(run, FIELDS)


def test_a_launchers_word_on_a_run_that_never_began_leaves_a_place_to_begin(run):
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
    with pytest.raises(
        ConfigError,
        match=r"/run holds files but not a run: choose another --workdir, a folder that is new or empty$",
    ):
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
    with pytest.raises(
        ConfigError,
        match=rf"holds {left.split('/')[0]} of a run, but no manifest.json .*: put it back from a copy",
    ):
        check_identity(run, {"steps": 6})


def test_a_run_whose_checkpoints_are_gone_is_never_begun_again(run):
    """Unless it is finished: then they may have been deleted to save room. One that never had a checkpoint begins again."""
    _begun(run)
    check_identity(run, FIELDS)
    write_record(run.committed, {"first_step": 2})
    run.checkpoints.mkdir()  # as where nothing is mounted
    with pytest.raises(
        ConfigError,
        match=r"/checkpoints is missing or empty, .*: mount it or put it back, or choose another --workdir",
    ):
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
    run.attempts.mkdir(parents=True)
    write_json(run.attempts / "0001.json", {"host": "here", "pid": 1, "time": 1.0})
    write_json(run.config, {"checkpoint": {"every": every}})
    write_json(run.manifest, {"identity_fields": FIELDS})
    write_json(run.status, {"status": status, "time": 1.0})
    run.metrics.write_text("".join(f'{{"step": {step}}}\n' for step in range(1, 5)))
    with (
        pytest.raises(ConfigError, match="missing or empty")
        if refused
        else contextlib.nullcontext()
    ):
        check_identity(run, FIELDS)


def _of_an_earlier_version(run, status: str) -> None:
    run.attempts.mkdir(parents=True)
    write_json(run.attempts / "0001.json", {"host": "here", "pid": 1, "time": 1.0})
    write_json(run.config, {"checkpoint": {"every": 2}})
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


@pytest.mark.parametrize("place", ["nowhere", "empty", "file"])
def test_find_no_runs(tmp_path, place):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ConfigError,
        match=rf"{place} holds no run: give a --workdir that `sparsecod train` wrote",
    ):
        find_runs(epath.Path(tmp_path) / place)
