"""What lies on disk, and under which name?

Run directory: its files, the run's status, and the identity that tells whose it is.
"""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterable
from typing import Any, Literal, get_args

from etils import epath

from sparsecod_jax.errors import ConfigError
from sparsecod_jax.shell.shown import shown
from sparsecod_jax.storage import files, journal
from sparsecod_jax.storage.ownership import (
    check_free_or_ours,
    is_dead,
    names_in,
    this_process,
)
from sparsecod_jax.storage.records import read_json, read_record, write_record

# stopped: the process was killed.
# damaged: status.json can't be read; the next attempt writes it anew.
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


def _in_folder(name: str) -> property:
    return property(lambda folder: folder.path / name)


@dataclasses.dataclass(frozen=True)
class AnalysisDir:
    """The files of one analysis."""

    path: epath.Path

    scores = _in_folder("scores.json")

    # [N, T] int32, the sequences that were scored
    tokens = _in_folder("tokens.npy")


@dataclasses.dataclass(frozen=True)
class RunDir:
    """The files of one run."""

    path: epath.Path  # absolute

    def __post_init__(self):
        object.__setattr__(self, "path", files.absolute(self.path))

    # What the run is: the resolved experiment; versions, commit, mesh, devices, counts
    # and identity; and the tokenizer of its data.
    config = _in_folder("config.json")
    manifest = _in_folder("manifest.json")
    tokenizer = _in_folder("tokenizer.json")

    # How far it is: one object per step in metrics.jsonl, unique by step.
    status = _in_folder("status.json")
    attempts = _in_folder("attempts")
    metrics = _in_folder("metrics.jsonl")
    tensorboard = _in_folder("tensorboard")
    profile = _in_folder("profile")

    # Its checkpoints: committed.json exists since the first one, and quarantine holds
    # those that failed verification.
    checkpoints = _in_folder("checkpoints")
    committed = _in_folder("committed.json")
    quarantine = _in_folder("quarantine")

    # Its results; evaluation.json is of downstream tasks.
    final = _in_folder("final.json")
    analysis = property(lambda self: AnalysisDir(self.path / "analysis"))
    evaluation = _in_folder("evaluation.json")
    report = _in_folder("report.html")

    # Of an imported model: the card and settings that it came with.
    origin = _in_folder("origin")

    def set_status(self, status: Status, **details) -> None:
        """Replaces status.json atomically."""
        record = {"status": status, "time": time.time(), **this_process(), **details}
        write_record(self.status, record)

    def read_status(self) -> Status:
        """The status in status.json.

        It is pending where there is no such file, and stopped instead of running where
        the process is dead.
        """
        if not self.status.exists():
            return "pending"
        try:
            record = read_record(self.status)
        except (ConfigError, OSError):
            return "damaged"
        status: Any = record.get("status")
        if status not in get_args(Status):
            return "damaged"
        if status == "running" and is_dead(record, self.path):
            return "stopped"
        return status

    def attempt(self, number: int) -> epath.Path:
        """The record of an attempt."""
        return self.attempts / f"{number:04d}.json"

    def newest_attempt(self) -> int:
        """The number of the newest attempt; 0 where there is none."""
        if not self.attempts.exists():
            return 0
        records = self.attempts.iterdir()
        return _largest(file.stem for file in records if file.suffix == ".json")

    def newest_checkpoint(self) -> int:
        """The step of the newest checkpoint, verified or not; 0 where there is none."""
        if not self.checkpoints.is_dir():
            return 0
        return _largest(step.name for step in self.checkpoints.iterdir())

    def had_checkpoint(self) -> bool:
        """Whether a checkpoint was ever committed here, even if it is gone."""
        if self.committed.exists():
            return True
        if names_in(self.checkpoints) or self._has_token(1):
            return False  # a save that a kill cut off proves that nothing is gone
        # Begun by a version that wrote no committed.json. Lines beyond the first
        # checkpoint's step are a sign of one.
        experiment = read_loosely(self.config)
        every = experiment.get("checkpoint", {}).get("every", 0)
        last = max(self._journal().lines, default=0)
        if 0 < every < last:
            return True
        # So is the status preempted, which that version set after a save alone.
        status = read_loosely(self.status).get("status")
        return status == "preempted" and not self._has_token(self.newest_attempt())

    def _has_token(self, attempt: int) -> bool:
        """Whether an attempt was of a version that writes committed.json."""
        return "token" in read_loosely(self.attempt(attempt))

    def read_metrics(self) -> list[dict[str, Any]]:
        """Every whole line of metrics.jsonl, in the order of steps.

        Warns of what is damaged, doubled or missing.
        """
        steps = 0
        if self.final.exists():
            steps = read_record(self.final).get("steps", 0)
        metrics = self._journal(steps)
        self._warn(metrics)
        return [values for values, _ in metrics.lines.values()]

    def begin_metrics(self, step: int) -> list[tuple[dict[str, Any], bytes]]:
        """The lines up to `step`, after which an attempt resumes.

        Where any line is damaged or doubled, a copy of the file is kept as it was.

        Returns:
          For each line its values, and the line itself.
        """
        metrics = self._journal(step)
        self._warn(metrics)
        if metrics.damaged or metrics.doubled:
            copy = files.free_name(self.metrics)
            files.write(copy, self.metrics.read_bytes())
            _print_error(f"metrics.jsonl as it was is kept as {shown(copy.name)}")
        return [line for number, line in metrics.lines.items() if number <= step]

    def _journal(self, until: int = 0) -> journal.Journal:
        content = b""
        if self.metrics.exists():
            content = self.metrics.read_bytes()
        return journal.read(content, until)

    def _warn(self, metrics: journal.Journal) -> None:
        if metrics.complaint:
            _print_error(f"{shown(self.metrics)}: {metrics.complaint}")


def _largest(names: Iterable[str]) -> int:
    """The largest of the names that are numbers; 0 where none is."""
    return max((int(name) for name in names if name.isdigit()), default=0)


def _print_error(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def find_runs(path: epath.Path) -> list[RunDir]:
    """The run at `path`, or those of a study, by name.

    A study's runs are in the folders of `path` and of `path/runs`.

    Raises:
      ConfigError: there is none.
    """
    if RunDir(path).config.exists():
        return [RunDir(path)]
    runs = []
    for parent in (path, path / "runs"):
        if parent.is_dir():
            runs += [RunDir(folder) for folder in sorted(parent.iterdir())]
    runs = [run for run in runs if run.config.exists()]
    if not runs:
        raise ConfigError(
            f"{path} holds no run: "
            "give a --workdir that `sparsecod train` wrote, or a folder of them"
        )
    return runs


def check_identity(run: RunDir, fields: dict[str, Any]) -> None:
    """Refuses a folder that holds another run, or anything else, or lost its checkpoints.

    Raises:
      ConfigError: names what lies there, the fields that changed, or the folder that is
        missing.
    """
    check_free_or_ours(run.path, ours=_is_ours(run), option="--workdir", kind="a run")
    if run.manifest.exists():
        manifest = read_record(run.manifest)
        _check_fields(run, manifest.get("identity_fields", {}), fields)
    elif results := _results(run):
        raise ConfigError(
            f"{run.path} holds {', '.join(results)} of a run, "
            "but no manifest.json that tells which: "
            "put it back from a copy, or choose another --workdir"
        )
    has_results = run.final.exists() or run.newest_checkpoint() > 0
    if not has_results and run.had_checkpoint():
        raise ConfigError(
            f"{run.checkpoints} is missing or empty, "
            "though this run has saved checkpoints there: "
            "mount it or put it back, or choose another --workdir to start afresh"
        )


def _check_fields(run: RunDir, before: dict[str, Any], fields: dict[str, Any]) -> None:
    changes = []
    for name in sorted({*before, *fields}):
        old, new = before.get(name), fields.get(name)
        if old != new:
            changes.append(f"{name} was {old!r}, is {new!r}")
    if changes:
        raise ConfigError(
            f"{run.path} holds another run ({', '.join(changes)}): "
            "undo the change or choose another --workdir"
        )


def _results(run: RunDir) -> list[str]:
    """What training has made, by name."""
    names = [file.name for file in (run.metrics, run.final) if file.exists()]
    if names_in(run.checkpoints):
        names.insert(0, run.checkpoints.name)
    return names


def _is_ours(run: RunDir) -> bool:
    """Whether a record proves that this package made the folder.

    A status alone may be that of a launcher, about a run that was lost.
    """
    attempts: list[epath.Path] = []
    if run.attempts.is_dir():
        attempts = list(run.attempts.iterdir())
    nothing_else = names_in(run.path) == {"attempts"}
    if nothing_else and all(_is_blank(file) for file in attempts):
        return True  # of a process that was killed while it wrote the first record
    if _holds(run.manifest, "identity_fields") or _holds(run.status, "status", "time"):
        return True
    return any(_holds(file, "host", "pid", "time") for file in attempts)


def _holds(file: epath.Path, *keys: str) -> bool:
    return read_loosely(file).keys() >= set(keys)


def _is_blank(file: epath.Path) -> bool:
    """Whether it is a file of zero bytes or none, as a power cut leaves one."""
    return file.is_file() and not file.read_bytes().strip(b"\0")


def read_loosely(file: epath.Path) -> dict[str, Any]:
    """A JSON object, or {} where none can be read: for signs, never for values."""
    with contextlib.suppress(ConfigError, OSError):
        values = read_json(file)
        return values if isinstance(values, dict) else {}
    return {}
