"""What happens when somebody asks this process to stop?

Stop signals: SIGTERM, SIGINT (Ctrl-C) and SIGHUP (a closing terminal) ask for the same.
A thread receives them, because Python's own handlers wait until the main thread returns
from compiled code, which may take minutes. While nothing would be lost, the process
leaves at once. Later the training loop checks after each step, saves, and leaves.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from sparsecod_jax.errors import INTERRUPTED, Preempted

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

# A second one of these means "now"; schedulers repeat SIGTERM without meaning more by it.
IMPATIENT = (signal.SIGINT, signal.SIGHUP)

# Seconds within which a repetition is the same request: a closing terminal sends two.
SAME = 0.1

# Seconds for a last action: a disk or terminal that hangs must not keep the process.
GRACE = 5.0

STDERR = 2  # file descriptor


class Stop:
    """The first stop signal and the response to it; a process has one, `STOP`."""

    def __init__(self):
        self.signal_name: str | None = None  # of the first signal
        self.record: Callable[[], None] = _nothing  # what to write before leaving
        self._received_at = 0.0
        self._respond: Callable[[signal.Signals], None] = self._leave_at_once

    def listen(self) -> None:
        """Receives the signals from now on.

        To be called in the main thread, and only in a process that this package owns.
        """
        read_end, write_end = os.pipe()
        # The interpreter writes each signal's number into the pipe, at any time, even
        # while the main thread is in compiled code. It must never block there.
        os.set_blocking(write_end, False)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        for number in STOPS:
            ignored = signal.getsignal(number) is signal.SIG_IGN  # as under nohup
            if not ignored:
                # Replaces the default action, which would end the process.
                signal.signal(number, lambda *_: None)
        thread = threading.Thread(
            target=self._listen, args=(read_end,), name="stopping", daemon=True
        )
        thread.start()

    def hold(self) -> None:
        """From now on something would be lost: a first signal is only remembered."""
        self._respond = lambda number: None

    def forward(self) -> None:
        """From now on JAX's preemption service decides.

        It has SIGTERM itself; the other signals are passed on to it as SIGTERM.
        """
        self._respond = lambda number: os.kill(os.getpid(), signal.SIGTERM)

    def _listen(self, read_end: int) -> None:
        while True:
            for byte in os.read(read_end, 64):
                if byte in STOPS:
                    self._receive(signal.Signals(byte))

    def _receive(self, number: signal.Signals) -> None:
        now = time.monotonic()
        if self.signal_name is None:
            self.signal_name = number.name
            self._received_at = now
            self._respond(number)
        elif number in IMPATIENT and now - self._received_at > SAME:
            reason = f"{number.name} came again: stopped at once"
            _leave(reason, INTERRUPTED, self.record)

    def _leave_at_once(self, number: signal.Signals) -> None:
        reason = (
            f"{number.name} came before a new step was made: "
            "run the same command to resume"
        )
        _leave(reason, Preempted.exit_code, self.record)


def _nothing() -> None:
    pass


STOP = Stop()


def _leave(reason: str, code: int, record: Callable[[], None]) -> NoReturn:
    run_within(GRACE, record)
    write_stderr(reason)
    os._exit(code)


def run_within(seconds: float, action: Callable[[], object]) -> None:
    """Runs an action that may fail or never return; comes back after `seconds` at most."""

    def attempt():
        with contextlib.suppress(Exception):
            action()

    # The thread is a daemon: one that never returns does not keep the process alive.
    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds)


def write_stderr(text: str) -> None:
    """Writes a line to the standard error just before the process leaves.

    It goes past everything that waits to be printed.
    """
    line = f"{text}\n".encode()
    run_within(GRACE, lambda: os.write(STDERR, line))


def end_within(seconds: float, code: int) -> None:
    """Ends the process after `seconds`, if a library's thread still keeps it alive."""

    def end():
        time.sleep(seconds)
        os._exit(code)

    threading.Thread(target=end, name="end_within", daemon=True).start()
