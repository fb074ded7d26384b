"""How does a program say something to a reader who may have stopped or left?

Lines wait in a bounded queue for a thread that writes them. Where there is no room, because a pipe is full,
they are dropped and counted; where the reader has left (`| head`), all that follows is dropped.
"""

import atexit
import contextlib
import io
import os
import queue
import sys
import threading
import time

LINES = 10_000  # that wait at most
LAST_WORDS = 3.0  # seconds that a reader has at the end


class Unhindered(io.TextIOBase):
    """A text stream whose `write` never waits and never fails."""

    def __init__(self, stream):
        self._descriptor = stream.fileno()
        self._encoding = stream.encoding
        self._lines: queue.Queue[bytes | None] = queue.Queue(LINES)
        self._begun = ""  # a line that has no end yet
        self._lock = threading.Lock()
        self._dropped = 0
        self._thread = threading.Thread(target=self._write_lines, name="console", daemon=True)
        with contextlib.suppress(OSError):
            stream.flush()
        self._thread.start()

    def write(self, text: str, /) -> int:
        with self._lock:
            self._begun += text
            if "\n" in text:
                self._take()
        return len(text)

    def flush(self) -> None:
        with self._lock:
            self._take()

    def _take(self) -> None:
        """Queues what was written so far."""
        text, self._begun = self._begun, ""
        try:
            if text:
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
        """Waits until all is written, but no longer than a slow reader may take."""
        deadline = time.monotonic() + LAST_WORDS
        self.flush()
        if self._dropped:
            self.write(f"[{self._dropped} lines were not printed, as nobody read them]\n")
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=LAST_WORDS)
        self._thread.join(max(0.0, deadline - time.monotonic()))

    def _write_lines(self) -> None:
        with contextlib.suppress(OSError):  # the reader has left, or the disk of a log is full
            while (line := self._lines.get()) is not None:
                while line:
                    line = line[os.write(self._descriptor, line) :]
            return
        while self._lines.get() is not None:
            pass


def unhinder() -> None:
    """From now on nothing that is printed holds up or ends this process; it ends some seconds after its last line at the latest."""
    sys.stdout, sys.stderr = streams = Unhindered(sys.stdout), Unhindered(sys.stderr)
    for stream in streams:
        atexit.register(stream.finish)
