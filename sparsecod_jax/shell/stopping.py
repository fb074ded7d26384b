"""What happens when somebody asks this process to stop?

SIGTERM, SIGINT (Ctrl-C) and SIGHUP (a terminal that closes) ask the same. A thread hears them: Python's
handlers wait until the main thread is back from compiled code, which may take minutes. As long as nothing
would be lost the process leaves at once. Later the training loop asks after each step, saves, and leaves.
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
IMPATIENT = (
    signal.SIGINT,
    signal.SIGHUP,
)  # schedulers repeat SIGTERM without meaning more by it
SAME = 0.1  # seconds within which a repetition is the same request: a closing terminal sends two
STANDARD_ERROR = 2
LAST_WORDS = (
    5.0  # seconds; a disk or a terminal that does not answer must not keep the process
)


class Stop:
    """What was asked, and what is done about it; a process has one, `STOP`."""

    def __init__(self):
        self.asked: str | None = None  # the name of the first signal
        self.record: Callable[[], None] = lambda: (
            None
        )  # what to put on record before leaving
        self._since = 0.0
        self._heed: Callable[[signal.Signals], None] = self._leave_for_now

    def listen(self) -> None:
        """Hears the signals from now on, in the main thread of a process of our own."""
        ear, mouth = os.pipe()
        os.set_blocking(mouth, False)
        signal.set_wakeup_fd(mouth, warn_on_full_buffer=False)
        for number in STOPS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                signal.signal(
                    number, lambda *_: None
                )  # Python's part; the thread does the rest
        threading.Thread(
            target=self._listen, args=(ear,), name="stopping", daemon=True
        ).start()

    def hold(self) -> None:
        """From now on something would be lost: a first signal is only remembered."""
        self._heed = lambda number: None

    def forward(self) -> None:
        """From now on JAX's preemption service has SIGTERM, and is told of the other signals by it."""
        self._heed = lambda number: os.kill(os.getpid(), signal.SIGTERM)

    def _listen(self, ear: int) -> None:
        while True:
            for byte in os.read(ear, 64):
                if byte in STOPS:
                    self._hear(signal.Signals(byte))

    def _hear(self, number: signal.Signals) -> None:
        now = time.monotonic()
        if self.asked is None:
            self.asked, self._since = number.name, now
            self._heed(number)
        elif number in IMPATIENT and now - self._since > SAME:
            _leave(
                f"{number.name} came again: stopped at once", INTERRUPTED, self.record
            )

    def _leave_for_now(self, number: signal.Signals) -> None:
        sentence = f"{number.name} came before a new step was made: run the same command to go on"
        _leave(sentence, Preempted.exit_code, self.record)


STOP = Stop()


def _leave(sentence: str, code: int, record: Callable[[], None]) -> NoReturn:
    within(LAST_WORDS, record)
    tell(sentence)
    os._exit(code)


def within(seconds: float, action: Callable[[], object]) -> None:
    """Does what may fail or never come back, and goes on after that time at the latest."""

    def tried():
        with contextlib.suppress(Exception):
            action()

    thread = threading.Thread(target=tried, daemon=True)
    thread.start()
    thread.join(seconds)


def tell(text: str) -> None:
    """Says something on the standard error just before the process leaves, past everything that waits to be printed."""
    within(LAST_WORDS, lambda: os.write(STANDARD_ERROR, f"{text}\n".encode()))


def end_within(seconds: float, code: int) -> None:
    """Ends the process by then, if a library's thread keeps it from ending by itself."""

    def end():
        time.sleep(seconds)
        os._exit(code)

    threading.Thread(target=end, name="end_within", daemon=True).start()
