"""What lies on disk, under which name, and who may write it?

A run directory belongs to its newest attempt. On a local file system a second live process is turned away by a lock that dies with its
holder; everywhere, an attempt that finds a newer one stops before its next commit. Object stores have no such lock: there the process that
starts last goes on. An attempt knows its own record by a random token, so it also stops if the directory was removed and made anew.
"""

import contextlib
import dataclasses
import json
import os
import secrets
import sys
import time
from collections.abc import Iterator
from typing import Any, Literal, get_args

from etils import epath

from sparsecod_jax.errors import ConfigError, Fenced
from sparsecod_jax.shell.shown import shown
from sparsecod_jax.storage import files, journal
from sparsecod_jax.storage.ownership import (
    check_free_or_ours,
    is_locked,
    locked,
    names_in,
)
from sparsecod_jax.storage.records import read_json, read_record, write_record

# stopped: it was killed; damaged: status.json can't be read, the next attempt writes it anew
Status = Literal[
    "pending",
    "running",
    "stopped",
    "preempted",
    "finished",
    "diverged",
    "failed",
    "damaged",
]

LARGEST_PID = 2**22  # beyond which Linux gives no process a number


@dataclasses.dataclass(frozen=True)
class AnalysisDir:
    """The files of one analysis."""

    path: epath.Path

    scores = property(lambda self: self.path / "scores.json")
    tokens = property(
        lambda self: self.path / "tokens.npy"
    )  # [N, T] int32, the sequences that were scored


@dataclasses.dataclass(frozen=True)
class RunDir:
    """The files of one run."""

    path: epath.Path  # absolute

    def __post_init__(self):
        object.__setattr__(self, "path", files.absolute(self.path))

    config = property(lambda self: self.path / "config.json")  # the resolved experiment
    manifest = property(
        lambda self: self.path / "manifest.json"
    )  # versions, commit, mesh, devices, counts, identity
    tokenizer = property(lambda self: self.path / "tokenizer.json")  # the data's
    status = property(lambda self: self.path / "status.json")
    attempts = property(lambda self: self.path / "attempts")
    metrics = property(
        lambda self: self.path / "metrics.jsonl"
    )  # one object a step, unique by step
    tensorboard = property(lambda self: self.path / "tensorboard")
    profile = property(lambda self: self.path / "profile")
    checkpoints = property(lambda self: self.path / "checkpoints")
    committed = property(
        lambda self: self.path / "committed.json"
    )  # there since the first checkpoint
    quarantine = property(
        lambda self: self.path / "quarantine"
    )  # checkpoints that failed verification
    final = property(lambda self: self.path / "final.json")
    analysis = property(lambda self: AnalysisDir(self.path / "analysis"))
    origin = property(
        lambda self: self.path / "origin"
    )  # of an import: the card and settings that it came with
    evaluation = property(
        lambda self: self.path / "evaluation.json"
    )  # downstream tasks
    report = property(lambda self: self.path / "report.html")

    def set_status(self, status: Status, **details) -> None:
        """Replaces status.json atomically."""
        write_record(
            self.status,
            {"status": status, "time": time.time(), **_this_process(), **details},
        )

    def read_status(self) -> Status:
        """What status.json says; pending where there is none, stopped where the process is dead."""
        if not self.status.exists():
            return "pending"
        try:
            said = read_record(self.status)
        except (ConfigError, OSError):
            said = {}
        if said.get("status") not in get_args(Status):
            return "damaged"
        return (
            "stopped"
            if said["status"] == "running" and _is_dead(said, self.path)
            else said["status"]
        )

    def newest_checkpoint(self) -> int:
        """The step of the newest checkpoint, verified or not; 0 where there is none."""
        steps = (
            [
                int(step.name)
                for step in self.checkpoints.iterdir()
                if step.name.isdigit()
            ]
            if self.checkpoints.is_dir()
            else []
        )
        return max(steps, default=0)

    def had_checkpoint(self) -> bool:
        """Whether a checkpoint was ever committed here, even if it is gone."""
        if self.committed.exists():
            return True
        if names_in(self.checkpoints) or _has_token(self, 1):
            return False  # a save that a kill cut off proves that nothing is gone
        # Begun by a version that did not record it: lines beyond the first checkpoint are a sign, as is its word of a save.
        every = read_loosely(self.config).get("checkpoint", {}).get("every", 0)
        last = max(self._journal().lines, default=0)
        preempted = read_loosely(self.status).get(
            "status"
        ) == "preempted" and not _has_token(self, _newest_attempt(self))
        return 0 < every < last or preempted

    def read_metrics(self) -> list[dict[str, Any]]:
        """Every whole line of metrics.jsonl, in the order of steps; says what is damaged, doubled or missing."""
        steps = read_record(self.final).get("steps", 0) if self.final.exists() else 0
        found = self._journal(steps)
        self._complain(found)
        return [values for values, _ in found.lines.values()]

    def begin_metrics(self, step: int) -> list[tuple[dict[str, Any], bytes]]:
        """The lines up to `step`, with which an attempt goes on: their values, and the lines themselves.

        Where any line is damaged or doubled, the file is kept aside as it was.
        """
        found = self._journal(step)
        self._complain(found)
        if found.damaged or found.doubled:
            aside = files.free_name(self.metrics)
            files.write(aside, self.metrics.read_bytes())
            print(
                f"metrics.jsonl as it was is kept as {shown(aside.name)}",
                file=sys.stderr,
                flush=True,
            )
        return [line for number, line in found.lines.items() if number <= step]

    def _journal(self, until: int = 0) -> journal.Journal:
        return journal.read(
            self.metrics.read_bytes() if self.metrics.exists() else b"", until
        )

    def _complain(self, found: journal.Journal) -> None:
        if found.complaint:
            print(
                f"{shown(self.metrics)}: {found.complaint}", file=sys.stderr, flush=True
            )


def find_runs(path: epath.Path) -> list[RunDir]:
    """The run at `path`, or those in the folders of `path` and of `path/runs` (a study), by name.

    Raises:
      ConfigError: there is none.
    """
    if RunDir(path).config.exists():
        return [RunDir(path)]
    folders = [
        folder
        for place in (path, path / "runs")
        if place.is_dir()
        for folder in sorted(place.iterdir())
    ]
    runs = [RunDir(folder) for folder in folders if RunDir(folder).config.exists()]
    if not runs:
        raise ConfigError(
            f"{path} holds no run: give a --workdir that `sparsecod train` wrote, or a folder of them"
        )
    return runs


def check_identity(run: RunDir, fields: dict[str, Any]) -> None:
    """Refuses a folder that holds something else, another run, or one that lost its checkpoints.

    Raises:
      ConfigError: says what lies there, names the fields that changed, or the folder that is missing.
    """
    check_free_or_ours(run.path, ours=_is_ours(run), option="--workdir", kind="a run")
    if run.manifest.exists():
        _check_fields(run, read_record(run.manifest).get("identity_fields", {}), fields)
    elif left := _results(run):
        lacking = f"{run.path} holds {', '.join(left)} of a run, but no manifest.json that says of which"
        raise ConfigError(
            f"{lacking}: put it back from a copy, or choose another --workdir"
        )
    if not run.final.exists() and not run.newest_checkpoint() and run.had_checkpoint():
        lacking = f"{run.checkpoints} is missing or empty, though this run has saved checkpoints there"
        raise ConfigError(
            f"{lacking}: mount it or put it back, or choose another --workdir to start afresh"
        )


def _check_fields(run: RunDir, before: dict[str, Any], fields: dict[str, Any]) -> None:
    names = sorted(
        name for name in {*before, *fields} if before.get(name) != fields.get(name)
    )
    if names:
        changes = ", ".join(
            f"{name} was {before.get(name)!r}, is {fields.get(name)!r}"
            for name in names
        )
        raise ConfigError(
            f"{run.path} holds another run ({changes}): undo the change or choose another --workdir"
        )


def _results(run: RunDir) -> list[str]:
    """What training has made, by name."""
    files_of = [file.name for file in (run.metrics, run.final) if file.exists()]
    return [*([run.checkpoints.name] if names_in(run.checkpoints) else []), *files_of]


def _is_ours(run: RunDir) -> bool:
    """Whether a record proves that this package made it; a status may be a launcher's of a lost run."""
    attempts = list(run.attempts.iterdir()) if run.attempts.is_dir() else []
    if names_in(run.path) == {"attempts"} and not any(
        _read(file).strip(b"\0") for file in attempts
    ):
        return True  # of a process that was killed while it wrote the first record
    of_attempts = [(file, {"host", "pid", "time"}) for file in attempts]
    proofs = [
        (run.manifest, {"identity_fields"}),
        (run.status, {"status", "time"}),
        *of_attempts,
    ]
    return any(names <= read_loosely(file).keys() for file, names in proofs)


def _read(file: epath.Path) -> bytes:
    return file.read_bytes() if file.is_file() else b"a folder"


def read_loosely(file: epath.Path) -> dict[str, Any]:
    """A JSON object, or nothing where none can be read: for signs, never for values."""
    with contextlib.suppress(ConfigError, OSError):
        values = read_json(file)
        return values if isinstance(values, dict) else {}
    return {}


class Attempt:
    """One process's claim on a run directory."""

    def __init__(self, run: RunDir, number: int, token: str = ""):
        self.run, self.number, self.token = run, number, token

    def check_shared(self) -> None:
        """Raises ConfigError when this process sees another directory than the one that made the claim."""
        if not self._is_there():
            raise ConfigError(
                f"attempt {self.number} is not in {self.run.path} as seen here: give a --workdir that all processes share"
            )

    def check_still_owner(self) -> None:
        """Raises Fenced when a newer attempt, or another directory, has taken this one's place."""
        newest = _newest_attempt(self.run)
        if newest > self.number:
            raise Fenced(
                f"attempt {newest} took over {self.run.path}: this attempt ({self.number}) stops before writing more"
            )
        if not self._is_there():
            raise Fenced(
                f"{self.run.path} was removed or replaced under attempt {self.number}: it stops before writing more"
            )

    def _is_there(self) -> bool:
        try:
            said = json.loads(_record(self.run, self.number).read_bytes())
        except (
            FileNotFoundError,
            ValueError,
        ):  # other trouble is the disk's, which is no reason to stop for good
            said = {}
        return isinstance(said, dict) and said.get("token", "") == self.token


def check_free(run: RunDir) -> None:
    """Raises Fenced where another process is at work in the run directory now."""
    if run.path.is_dir():
        with locked(run.path):
            pass


@contextlib.contextmanager
def claim(run: RunDir) -> Iterator[Attempt]:
    """Makes this process the owner of the run directory while the context lasts.

    Raises:
      ConfigError: the directory can't be made.
      Fenced: another live process owns it; nothing was written.
    """
    files.make_folder(run.path)
    with locked(run.path):
        yield _enter(run)


def _enter(run: RunDir) -> Attempt:
    """A new attempt; where another process takes its number first, the next one, as the later wins."""
    files.make_folder(run.attempts)
    token = secrets.token_hex(8)
    record = json.dumps({**_this_process(), "time": time.time(), "token": token})
    number = _newest_attempt(run)
    while True:
        number += 1
        with contextlib.suppress(FileExistsError):
            files.create(_record(run, number), record.encode())
            return Attempt(run, number, token)


def _record(run: RunDir, number: int) -> epath.Path:
    return run.attempts / f"{number:04d}.json"


def _this_process() -> dict[str, Any]:
    return {"host": os.uname().nodename, "pid": os.getpid()}


def _is_dead(said: dict[str, Any], path: epath.Path) -> bool:
    """Whether the process of this host that wrote `said` in `path` is gone for certain."""
    number = said.get("pid")
    if (
        said.get("host") != os.uname().nodename
        or type(number) is not int
        or not 0 < number < LARGEST_PID
    ):
        return False  # of other hosts nobody knows
    try:
        os.kill(number, 0)
    except (
        ProcessLookupError
    ):  # or it lives in another container of this host, and holds the lock
        return not is_locked(path)
    except PermissionError:
        return False
    return False


def _has_token(run: RunDir, number: int) -> bool:
    """Whether an attempt was of a version that records checkpoints."""
    return "token" in read_loosely(_record(run, number))


def _newest_attempt(run: RunDir) -> int:
    names = (
        [file.stem for file in run.attempts.iterdir() if file.suffix == ".json"]
        if run.attempts.exists()
        else []
    )
    return max((int(name) for name in names if name.isdigit()), default=0)
