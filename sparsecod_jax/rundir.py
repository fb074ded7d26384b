"""What lies on disk, under which name, and who may write it?

A run directory belongs to its newest attempt. On a local file system a second live process is turned away by a lock that dies with its
holder; everywhere, an attempt that finds a newer one stops before its next commit. Object stores have no such lock: there the process that
starts last goes on.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import time
from collections.abc import Iterator
from typing import Any, Literal

from etils import epath

from sparsecod_jax import files
from sparsecod_jax.errors import ConfigError, Fenced
from sparsecod_jax.files import read_json, write_json

Status = Literal["pending", "running", "preempted", "finished", "diverged", "failed"]


@dataclasses.dataclass(frozen=True)
class AnalysisDir:
    """The files of one analysis."""

    path: epath.Path

    scores = property(lambda self: self.path / "scores.json")
    tokens = property(lambda self: self.path / "tokens.npy")  # [N, T] int32, the sequences that were scored


@dataclasses.dataclass(frozen=True)
class RunDir:
    """The files of one run."""

    path: epath.Path  # absolute

    def __post_init__(self):
        object.__setattr__(self, "path", files.absolute(self.path))

    config = property(lambda self: self.path / "config.json")  # the resolved experiment
    manifest = property(lambda self: self.path / "manifest.json")  # versions, commit, mesh, devices, counts, identity
    tokenizer = property(lambda self: self.path / "tokenizer.json")  # the data's
    status = property(lambda self: self.path / "status.json")
    attempts = property(lambda self: self.path / "attempts")
    metrics = property(lambda self: self.path / "metrics.jsonl")  # one object a step, unique by step
    tensorboard = property(lambda self: self.path / "tensorboard")
    profile = property(lambda self: self.path / "profile")
    checkpoints = property(lambda self: self.path / "checkpoints")
    quarantine = property(lambda self: self.path / "quarantine")  # checkpoints that failed verification
    final = property(lambda self: self.path / "final.json")
    analysis = property(lambda self: AnalysisDir(self.path / "analysis"))
    origin = property(lambda self: self.path / "origin")  # of an import: the card and settings that it came with
    evaluation = property(lambda self: self.path / "evaluation.json")  # downstream tasks
    report = property(lambda self: self.path / "report.html")

    def set_status(self, status: Status, **details) -> None:
        """Replaces status.json atomically."""
        write_json(self.status, {"status": status, "time": time.time(), **details})

    def read_status(self) -> Status:
        """What status.json says; pending where there is none."""
        return read_json(self.status)["status"] if self.status.exists() else "pending"

    def newest_checkpoint(self) -> int:
        """The step of the newest checkpoint, verified or not; 0 where there is none."""
        steps = [int(step.name) for step in self.checkpoints.iterdir() if step.name.isdigit()] if self.checkpoints.exists() else []
        return max(steps, default=0)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Every complete line of metrics.jsonl; a line cut off by a crash is left out."""
        lines = []
        for line in self.metrics.read_text().splitlines() if self.metrics.exists() else []:
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return lines


def find_runs(path: epath.Path) -> list[RunDir]:
    """The run at `path`, or those in the folders of `path` and of `path/runs` (a study), by name.

    Raises:
      ConfigError: there is none.
    """
    if RunDir(path).config.exists():
        return [RunDir(path)]
    folders = [folder for place in (path, path / "runs") if place.is_dir() for folder in sorted(place.iterdir())]
    runs = [RunDir(folder) for folder in folders if RunDir(folder).config.exists()]
    if not runs:
        raise ConfigError(f"{path} holds no run: give a --workdir that `sparsecod train` wrote, or a folder of them")
    return runs


def check_identity(run: RunDir, fields: dict[str, Any]) -> None:
    """Refuses to go on with a run under another identity.

    Raises:
      ConfigError: names the fields that changed.
    """
    if not run.manifest.exists():
        return
    before = read_json(run.manifest)["identity_fields"]
    names = sorted(name for name in {*before, *fields} if before.get(name) != fields.get(name))
    if names:
        changes = ", ".join(f"{name} was {before.get(name)!r}, is {fields.get(name)!r}" for name in names)
        raise ConfigError(f"{run.path} holds another run ({changes}): undo the change or choose another --workdir")


class Attempt:
    """One process's claim on a run directory."""

    def __init__(self, run: RunDir, number: int):
        self.run, self.number = run, number

    def check_still_owner(self) -> None:
        """Raises Fenced when a newer attempt has taken the directory over, ConfigError when this process sees another directory."""
        newest = _newest_attempt(self.run)
        if newest > self.number:
            raise Fenced(f"attempt {newest} took over {self.run.path}: this attempt ({self.number}) stops before writing more")
        if newest < self.number:
            raise ConfigError(f"attempt {self.number} is not in {self.run.path} as seen here: give a --workdir that all processes share")


def check_free(run: RunDir) -> None:
    """Raises Fenced where another process is at work in the run directory now."""
    if run.path.is_dir():
        with locked(run.path):
            pass


@contextlib.contextmanager
def claim(run: RunDir) -> Iterator[Attempt]:
    """Makes this process the owner of the run directory while the context lasts.

    Raises:
      Fenced: another live process owns it; nothing was written.
    """
    run.path.mkdir(parents=True, exist_ok=True)
    with locked(run.path):
        yield Attempt(run, _enter(run))


def _enter(run: RunDir) -> int:
    """The number of a new attempt. When another process takes it at the same moment, the next one: the later start goes on, as ever."""
    run.attempts.mkdir(parents=True, exist_ok=True)
    record = json.dumps({"host": os.uname().nodename, "pid": os.getpid(), "time": time.time()})
    number = _newest_attempt(run)
    while True:
        number += 1
        with contextlib.suppress(FileExistsError):
            files.create(run.attempts / f"{number:04d}.json", record.encode())
            return number


@contextlib.contextmanager
def locked(path: epath.Path) -> Iterator[None]:
    """Holds a lock on a local directory; object stores have none, there `check_still_owner` alone decides.

    Raises:
      Fenced: another process holds it.
    """
    if files.is_remote(path):
        yield
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Fenced(f"another process is at work in {path}: wait for it, or stop it first") from error
        yield
    finally:
        os.close(descriptor)


def _newest_attempt(run: RunDir) -> int:
    return max((int(file.stem) for file in run.attempts.iterdir() if file.suffix == ".json"), default=0) if run.attempts.exists() else 0
