"""Where do the measurements of a step go?

Metric writers: metrics.jsonl every step, TensorBoard and the console every few.

metrics.jsonl is the truth: one object per step, unique by step, also after a resume. A
number that is not finite is null there, and named under "nonfinite". In an object
store, which can't append, both files appear whole at each checkpoint.
"""

import contextlib
import errno
import os
import sys
from typing import Any

import numpy as np

from sparsecod_jax.shell.shown import shown
from sparsecod_jax.storage import files, journal
from sparsecod_jax.storage.attempts import Attempt
from sparsecod_jax.storage.rundir import RunDir
from sparsecod_jax.train.curves import Curves

WAITING = 10_000  # lines kept in memory for a disk that has no room


def plain(metrics: dict[str, Any]) -> dict[str, Any]:
    """Metrics as strict JSON values: arrays as lists, and null for what is not finite."""
    values = {}
    nonfinite = []
    for name, value in metrics.items():
        values[name] = np.asarray(value).tolist()
        if not np.all(np.isfinite(value)):
            nonfinite.append(name)
            values[name] = _without_nonfinite(values[name])
    if nonfinite:
        values["nonfinite"] = sorted(nonfinite)
    return values


def _without_nonfinite(value):
    if isinstance(value, list):
        return [_without_nonfinite(item) for item in value]
    return value if np.isfinite(value) else None


class Writers:
    """Writes the metrics of an attempt, from `begin` to `close`.

    Every process has one, and the first process alone begins. A line that finds no room
    waits for the next one: losing a log never stops a training whose checkpoints are
    safe.
    """

    def __init__(self, attempt: Attempt):
        self.lost = 0  # lines that metrics.jsonl lacks
        self._attempt = attempt
        # The newest line, as values and as bytes: an evaluation may amend it.
        self._last: dict[str, Any] = {}
        self._last_line = b""
        # Lines that found no room yet, oldest first.
        self._waiting: list[bytes] = []
        self._upload_failed = False

    def begin(self, restored_step: int) -> None:
        """Opens the files to write what follows `restored_step`.

        Drops what a crash left beyond it.
        """
        run = self._attempt.run
        lines = run.begin_metrics(restored_step)
        if lines:
            self._last, self._last_line = lines[-1]
        self._mirror = files.Mirror(run.path)
        local = RunDir(self._mirror.path)
        content = b"".join(line for _, line in lines)
        files.write(local.metrics, content)
        self._jsonl = os.open(local.metrics, os.O_WRONLY | os.O_APPEND)
        self._size = len(content)  # of the whole lines in the file
        self._curves = Curves(local.tensorboard, restored_step + 1)

    def write(self, metrics: dict[str, Any], *, tensorboard: bool) -> None:
        """Appends one step; `metrics` holds "step" and plain values."""
        self._last = metrics
        self._last_line = journal.line(metrics).encode()
        self._waiting.append(self._last_line)
        self._append()
        if tensorboard:
            self._curves.add(metrics)

    def lacks_evaluation(self, step: int) -> bool:
        """Whether `step` has the newest line, and that has no held-out metrics."""
        is_newest = self._last.get("step") == step
        return is_newest and "evaluation/loss" not in self._last

    def amend(self, values: dict[str, Any]) -> None:
        """Adds values to the newest line."""
        # It is cut off and written again, longer.
        self._size -= len(self._last_line)
        os.ftruncate(self._jsonl, self._size)
        self._curves.add(values | {"step": self._last["step"]})
        self.write(self._last | values, tensorboard=False)

    def _append(self) -> None:
        """Writes the lines that wait; of one that finds no room, nothing stays."""
        try:
            while self._waiting:
                line = self._waiting[0]
                written = os.write(self._jsonl, line)
                if written < len(line):
                    # The disk took a part. It is cut off again, so that a reader finds
                    # whole lines only.
                    os.ftruncate(self._jsonl, self._size)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                self._size += len(line)
                del self._waiting[0]
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        """Warns once; drops the oldest line when too many wait."""
        if not self.lost and len(self._waiting) == 1:
            problem = f"{shown(self._attempt.run.metrics)} can't be written"
            _print_error(f"{problem} ({error.strerror}): training continues")
        if len(self._waiting) > WAITING:
            del self._waiting[0]
            self.lost += 1

    def sync(self) -> None:
        """Returns when all lines are on disk, as far as it has room.

        To be called before a checkpoint makes its step final.

        Raises:
          Fenced: a newer attempt writes these files now.
        """
        with contextlib.suppress(OSError):
            os.fsync(self._jsonl)
        self._curves.flush()
        self._upload()

    def _upload(self) -> None:
        # An upload would replace the files of a newer attempt.
        self._attempt.check_still_owner()
        try:
            self._mirror.upload()
        except Exception as error:  # whatever the store raised; the next upload has all
            if not self._upload_failed:
                reason = f"{type(error).__name__}: {error}"
                _print_error(f"logs can't be uploaded ({reason}): training continues")
            self._upload_failed = True

    def close(self) -> None:
        # The mirror is removed even if a newer attempt forbids the last upload.
        with contextlib.closing(self._mirror):
            self._append()
            self._curves.close()
            os.close(self._jsonl)
            self._upload()
        run = self._attempt.run
        lost = self.lost + len(self._waiting)
        if lost:
            _print_error(f"{shown(run.metrics)} lacks {lost} lines that found no room")
        if self._curves.lost:
            _print_error(f"{shown(run.tensorboard)} lacks {self._curves.lost} steps")


def _print_error(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
