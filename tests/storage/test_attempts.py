"""Who owns a run directory, when several processes want it."""

import errno
from pathlib import Path

import pytest
from etils import epath

from sparsecod_jax.errors import ConfigError, Fenced
from sparsecod_jax.storage.attempts import Attempt, claim
from sparsecod_jax.storage.records import read_json, write_json
from sparsecod_jax.storage.rundir import RunDir
from tests.support.holding import holding


@pytest.fixture
def run(tmp_path):
    return RunDir(epath.Path(tmp_path) / "run")


@pytest.fixture
def holder(run):
    """Another process that owns the run."""
    with holding(run.path) as process:
        yield process


def _files(path):
    return {
        str(file): file.read_bytes() for file in Path(path).rglob("*") if file.is_file()
    }


def test_attempts_are_numbered(run):
    for number in (1, 2, 3):
        with claim(run) as attempt:
            assert attempt.number == number
            attempt.check_still_owner()
    names = sorted(path.name for path in run.attempts.iterdir())
    assert names == ["0001.json", "0002.json", "0003.json"]
    record = read_json(run.attempts / "0003.json")
    assert set(record) == {"host", "pid", "time", "token"}


def test_a_second_process_is_turned_away_and_writes_nothing(run, holder):
    before = _files(run.path)
    sentence = r"another process is at work in .*/run: wait for it"
    with pytest.raises(Fenced, match=sentence) as caught, claim(run):
        pass
    assert caught.value.exit_code == 76
    assert _files(run.path) == before
    assert holder.poll() is None


def test_a_killed_process_leaves_the_run_free(run, holder):
    holder.kill()
    holder.wait()
    with claim(run) as attempt:
        assert attempt.number == 2


def test_two_runs_do_not_disturb_each_other(run, holder):
    with claim(RunDir(run.path.parent / "other")) as attempt:
        assert attempt.number == 1


def test_the_owner_may_write_until_a_newer_attempt_appears(run):
    with claim(run) as attempt:
        attempt.check_still_owner()
        write_json(run.attempts / "0007.json", {})
        sentence = r"attempt 7 took over .*: this attempt \(1\) stops"
        with pytest.raises(Fenced, match=sentence):
            attempt.check_still_owner()
    with claim(run) as attempt:
        assert attempt.number == 8


def test_a_process_that_sees_another_directory_is_refused(run, tmp_path):
    local = RunDir(epath.Path(tmp_path) / "local")
    with claim(run) as attempt:
        Attempt(run, attempt.number, attempt.token).check_shared()
        problem = r"^attempt 1 is not in .*/local as seen here"
        remedy = "give a --workdir that all"
        with pytest.raises(ConfigError, match=f"{problem}: {remedy}"):
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
        problem = "/run was removed or replaced under attempt 3"
        with pytest.raises(Fenced, match=f"{problem}: it stops before writing more"):
            attempt.check_still_owner()


def test_a_disk_that_does_not_answer_is_not_a_new_owner(run, monkeypatch):
    with claim(run) as attempt:
        with monkeypatch.context() as failing:
            failing.setattr(type(run.path), "read_bytes", _stale)
            with pytest.raises(OSError, match="Stale file handle"):
                attempt.check_still_owner()
        attempt.check_still_owner()


def _stale(path):
    raise OSError(errno.ESTALE, "Stale file handle", str(path))


def test_the_lock_is_freed_and_errors_pass_through_unchanged(run):
    """Also "would block", which a print to a full pipe raises: nobody holds the lock."""
    with pytest.raises(BlockingIOError, match="stdout"), claim(run):
        raise BlockingIOError("write to stdout would block")
    with claim(run) as attempt:
        assert attempt.number == 2
