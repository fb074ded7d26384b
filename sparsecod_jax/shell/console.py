"""How does a program print to a reader who may have stopped reading, or left?

Console output: lines wait in a bounded queue for a thread that writes them. Where there
is no room, because a pipe or a disk is full, lines are dropped and counted. Where the
reader has left (`| head`), all later lines are dropped.
"""

import atexit
import contextlib
import io
import os
import queue
import select
import sys
import threading
import time

LINES = 10_000  # that wait at most
GRACE = 3.0  # seconds that a slow reader has at the end


class NonBlockingStream(io.TextIOBase):
    """A text stream whose `write` never waits and never fails."""

    def __init__(self, stream):
        self._descriptor = stream.fileno()
        self._encoding = stream.encoding
        self._lines: queue.Queue[bytes | None] = queue.Queue(LINES)  # None ends it
        self._partial = ""  # a line without an end so far
        # Guards `_partial` and `_dropped`: any thread of the process may print.
        self._lock = threading.Lock()
        self._dropped = 0
        self._reader_left = False
        self._thread = threading.Thread(
            target=self._write_lines, name="console", daemon=True
        )
        # What is in the old stream's buffer comes before what is written here.
        with contextlib.suppress(OSError):
            stream.flush()
        self._thread.start()

    def write(self, text: str, /) -> int:
        with self._lock:
            self._partial += text
            if "\n" in text:
                self._enqueue()
        return len(text)

    def flush(self) -> None:
        with self._lock:
            self._enqueue()

    def _enqueue(self) -> None:
        """Queues what was written so far; the caller holds the lock."""
        text, self._partial = self._partial, ""
        if not text:
            return
        try:
            self._lines.put_nowait(text.encode(self._encoding, "backslashreplace"))
        except queue.Full:
            self._dropped += 1

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def fileno(self) -> int:
        return self._descriptor

    def finish(self) -> None:
        """Waits until all is written, but not longer than a slow reader may take."""
        deadline = time.monotonic() + GRACE
        self.flush()
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=GRACE)
        self._thread.join(max(0.0, deadline - time.monotonic()))

    def _write_lines(self) -> None:
        while (line := self._lines.get()) is not None:
            self._write_line(line)
        if self._dropped:
            count = f"{self._dropped} lines were not printed"
            self._write_line(f"[{count}, as there was no room for them]\n".encode())

    def _write_line(self, line: bytes) -> None:
        try:
            while line and not self._reader_left:
                written = self._write_part(line)
                line = line[written:]
        except BrokenPipeError:
            self._reader_left = True
        except OSError:  # the next line may find room again
            with self._lock:
                self._dropped += 1

    def _write_part(self, line: bytes) -> int:
        """Writes what the descriptor takes now; returns how many bytes that were."""
        try:
            return os.write(self._descriptor, line)
        except BlockingIOError:
            # Another process that shares the pipe made it non-blocking: wait for room.
            room = select.poll()
            room.register(self._descriptor, select.POLLOUT)
            room.poll()
            return 0


def use_nonblocking_output() -> None:
    """From now on nothing that is printed holds up or ends this process.

    At its end the process waits a few seconds at most for its last lines to be read.
    """
    for name in ("stdout", "stderr"):
        stream = NonBlockingStream(getattr(sys, name))
        setattr(sys, name, stream)
        atexit.register(stream.finish)
