"""Which curves does TensorBoard show? One a number, and one a block: variance/residual/layer_07.

A thread writes them. Its queue is bounded and its errors are counted: a disk that is full or does not answer
costs curves, which metrics.jsonl also has, and never a step.
"""

import contextlib
import os
import queue
import sys
import threading
import time
from typing import Any

from etils import epath
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.summary import scalar

LINES = 100  # that wait at most
LAST_WORDS = 10.0  # seconds that the thread has for what waits


class Curves:
    """Event files of one attempt, which hides what an earlier one left from `first_step` on."""

    def __init__(self, folder: epath.Path, first_step: int):
        self.lost = 0  # lines
        self._folder, self._first_step = folder, first_step
        self._file: EventsWriter | None = None
        self._files = 0
        self._lines: queue.Queue[dict[str, Any] | threading.Event | None] = queue.Queue(
            LINES
        )
        self._thread = threading.Thread(
            target=self._write_lines, name="curves", daemon=True
        )
        self._thread.start()

    def add(self, metrics: dict[str, Any]) -> None:
        """Takes the numbers of a step, which `metrics` names "step"; never waits."""
        try:
            self._lines.put_nowait(metrics)
        except queue.Full:
            self.lost += 1

    def flush(self) -> None:
        """Returns when what was added is in the files, or after some seconds."""
        written = threading.Event()
        with contextlib.suppress(queue.Full):
            self._lines.put(written, timeout=LAST_WORDS)
            written.wait(LAST_WORDS)

    def close(self) -> None:
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=LAST_WORDS)
        self._thread.join(LAST_WORDS)

    def _write_lines(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._write(line)
            except Exception as error:  # whatever the storage raised
                self._lose(error)

    def _write(self, line: dict[str, Any] | threading.Event) -> None:
        if isinstance(line, threading.Event):
            line.set()
            return
        self._file = self._file or self._begin()
        event = Event(step=line["step"], wall_time=time.time())
        for name, value in _numbers(line):
            event.summary.MergeFrom(scalar(name, value))
        self._file.write_event(event)
        self._file.flush()

    def _begin(self) -> EventsWriter:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._files += 1
        file = EventsWriter(
            os.fspath(self._folder / "events"), f".{os.getpid()}.{self._files}"
        )
        file.write_event(
            Event(
                step=self._first_step, session_log=SessionLog(status=SessionLog.START)
            )
        )
        return file

    def _lose(self, error: Exception) -> None:
        """Gives up the file, whose last record may be cut off; the next line begins another."""
        if not self.lost:
            print(
                f"TensorBoard's files can't be written ({error}): training goes on",
                file=sys.stderr,
                flush=True,
            )
        self.lost += 1
        self._file = None


def _numbers(metrics: dict[str, Any]) -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for name, value in metrics.items():
        if isinstance(value, list) and name != "nonfinite":
            found += [
                (f"{name}/layer_{layer:02d}", number)
                for layer, number in enumerate(value)
                if number is not None
            ]
        elif isinstance(value, (int, float)) and name != "step":
            found.append((name, value))
    return found
