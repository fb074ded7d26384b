"""How does a program say something to a reader who may have stopped or left?

Lines wait in a bounded queue for a thread that writes them. Where there is no room, because a pipe or a disk is
full, they are dropped and counted; where the reader has left (`| head`), all that follows is dropped.
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
        self._reader_left = False
        self._thread = threading.Thread(
            target=self._write_lines, name="console", daemon=True
        )
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
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=LAST_WORDS)
        self._thread.join(max(0.0, deadline - time.monotonic()))

    def _write_lines(self) -> None:
        while (line := self._lines.get()) is not None:
            self._write_line(line)
        if self._dropped:
            self._write_line(
                f"[{self._dropped} lines were not printed, as there was no room for them]\n".encode()
            )

    def _write_line(self, line: bytes) -> None:
        try:
            while line and not self._reader_left:
                line = line[self._write_part(line) :]
        except BrokenPipeError:
            self._reader_left = True
        except OSError:  # the next line may find room again
            with self._lock:
                self._dropped += 1

    def _write_part(self, line: bytes) -> int:
        """How many bytes were written, after a wait where a pipe that others share does not wait by itself."""
        try:
            return os.write(self._descriptor, line)
        except BlockingIOError:
            waiting = select.poll()
            waiting.register(self._descriptor, select.POLLOUT)
            waiting.poll()
            return 0


def unhinder() -> None:
    """From now on nothing that is printed holds up or ends this process; it ends some seconds after its last line at the latest."""
    sys.stdout, sys.stderr = streams = Unhindered(sys.stdout), Unhindered(sys.stderr)
    for stream in streams:
        atexit.register(stream.finish)
