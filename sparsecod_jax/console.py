"""How does a program say something to a reader who may have stopped or left?

Lines wait in a bounded queue for a thread that writes them. Where there is no room, because a pipe is full,
they are dropped and counted; where the reader has left (`| head`), all that follows is dropped.
"""

import contextlib
import io
import os
import queue
import sys
import threading
import time
from collections.abc import Iterator

LINES = 1000  # that wait at most
LAST_WORDS = 3.0  # seconds that a reader has at the end


class Unhindered(io.TextIOBase):
    """A text stream whose `write` never waits and never fails."""

    def __init__(self, stream):
        self._descriptor = stream.fileno()
        self._encoding = stream.encoding
        self._lines: queue.Queue[bytes | None] = queue.Queue(LINES)
        self._dropped = 0
        self._thread = threading.Thread(target=self._write_lines, name="console", daemon=True)
        stream.flush()
        self._thread.start()

    def write(self, text: str, /) -> int:
        try:
            self._lines.put_nowait(text.encode(self._encoding, "backslashreplace"))
        except queue.Full:
            self._dropped += 1
        return len(text)

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def fileno(self) -> int:
        return self._descriptor

    def finish(self) -> None:
        """Waits until all is written, but no longer than a slow reader may take."""
        deadline = time.monotonic() + LAST_WORDS
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


@contextlib.contextmanager
def unhindered() -> Iterator[None]:
    """While the context lasts, nothing that is printed holds up or ends the program."""
    before = sys.stdout, sys.stderr
    streams = [Unhindered(stream) for stream in before]
    sys.stdout, sys.stderr = streams
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for stream in streams:
            stream.finish()
