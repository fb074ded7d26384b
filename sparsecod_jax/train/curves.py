"""Which curves does TensorBoard show?

TensorBoard: one curve per number, and one per block: variance/residual/layer_07.

A thread writes them. Its queue is bounded and its errors are counted: a disk that is
full or does not answer costs curves, which metrics.jsonl also has, but never a step.
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
GRACE = 10.0  # seconds that the thread has to write what waits

# A line to write; an event to set when all before it is written; None to end.
_Entry = dict[str, Any] | threading.Event | None


class Curves:
    """Event files of one attempt.

    In TensorBoard they hide what an earlier attempt left from `first_step` on.
    """

    def __init__(self, folder: epath.Path, first_step: int):
        self.lost = 0  # lines
        self._folder = folder
        self._first_step = first_step
        # Only the thread touches the file and the number of files.
        self._file: EventsWriter | None = None
        self._files = 0
        self._lines: queue.Queue[_Entry] = queue.Queue(LINES)
        self._thread = threading.Thread(
            target=self._write_lines, name="curves", daemon=True
        )
        self._thread.start()

    def add(self, metrics: dict[str, Any]) -> None:
        """Adds the numbers of one step, with its number as "step"; never waits."""
        try:
            self._lines.put_nowait(metrics)
        except queue.Full:
            self.lost += 1

    def flush(self) -> None:
        """Returns when what was added is in the files, or after some seconds."""
        written = threading.Event()
        with contextlib.suppress(queue.Full):
            self._lines.put(written, timeout=GRACE)
            written.wait(GRACE)

    def close(self) -> None:
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=GRACE)
        self._thread.join(GRACE)

    def _write_lines(self) -> None:
        """The thread: an error costs a line, and never ends it."""
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
        for name, value in _scalars(line):
            event.summary.MergeFrom(scalar(name, value))
        self._file.write_event(event)
        self._file.flush()

    def _begin(self) -> EventsWriter:
        """A new event file, which begins with a restart at the attempt's first step."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._files += 1
        prefix = os.fspath(self._folder / "events")
        file = EventsWriter(prefix, f".{os.getpid()}.{self._files}")
        restart = SessionLog(status=SessionLog.START)
        file.write_event(Event(step=self._first_step, session_log=restart))
        return file

    def _lose(self, error: Exception) -> None:
        """Gives up the file, whose last record may be cut off.

        The next line begins another.
        """
        if not self.lost:
            problem = f"TensorBoard's files can't be written ({error})"
            print(f"{problem}: training continues", file=sys.stderr, flush=True)
        self.lost += 1
        self._file = None


def _scalars(metrics: dict[str, Any]) -> list[tuple[str, float]]:
    """Names and numbers of all curves that have a point at this step."""
    scalars: list[tuple[str, float]] = []
    for name, value in metrics.items():
        if name in ("step", "nonfinite"):
            continue
        if isinstance(value, list):
            for layer, number in enumerate(value):
                if number is not None:
                    scalars.append((f"{name}/layer_{layer:02d}", number))
        elif isinstance(value, (int, float)):
            scalars.append((name, value))
    return scalars
