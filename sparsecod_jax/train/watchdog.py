"""Does the run still move? Ends a process in which nothing happens any more, so that it can be started again.

A step may take ten times the median, or five minutes if that is more; other activities have budgets of their
own. A thread counts the seconds that it was awake for, by a clock that nobody sets: neither a changed clock
nor a process or machine that was suspended uses up a budget. Each of several processes has its own watchdog,
so that those who wait for one that is stuck leave as well.
"""

import collections
import contextlib
import faulthandler
import os
import statistics
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator

import jax

from sparsecod_jax.errors import STUCK, ConfigError, Diverged, Preempted, SaveFailed
from sparsecod_jax.shell.stopping import GRACE, run_within, write_stderr
from sparsecod_jax.storage import files
from sparsecod_jax.storage.attempts import Attempt

PATIENCE = "SPARSECOD_PATIENCE"  # seconds, in place of five minutes; the other budgets grow and shrink with it
FIVE_MINUTES = 300.0
SLOWER = 10  # medians that a step may take
REMEMBERED = 101  # steps

# How many times the patience may pass until something is achieved: a step, a read, a batch of an evaluation, else the whole of it.
# The first step may take as long as compiling.
BUDGETS = {
    "starting": 6,
    "compiling": 12,
    "restoring": 12,
    "training": 1,
    "reading data": 1,
    "evaluating": 6,
    "saving": 12,
    "finishing": 12,
}
CLOSING = 20.0  # seconds for closing files after a save that failed; Orbax's threads may wait for minutes for it
TICKS = 20  # looks within the patience


class Watchdog:
    """Looks on while the context lasts."""

    def __init__(self):
        self._patience = _patience()
        # What is done, and a number that grows whenever something was achieved; replaced at once, as another thread reads it.
        self._now = ("starting", 0)
        self._steps: collections.deque[float] = collections.deque(maxlen=REMEMBERED)
        self._attempt: Attempt | None = None
        self._process = 0  # asked for early: when jax is stuck it may not answer
        self._error: BaseException | None = None
        self._closing = CLOSING
        self._over = threading.Event()

    def __enter__(self):
        threading.Thread(target=self._look, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *error):
        self._over.set()

    def report_to(self, attempt: Attempt) -> None:
        """Says whose directory shall hold the status and the stacks."""
        self._process = jax.process_index()
        self._attempt = attempt

    @contextlib.contextmanager
    def during(self, activity: str) -> Iterator[None]:
        """Gives what is done in the context a budget of its own."""
        before, moves = self._now
        self._now = (activity, moves + 1)
        try:
            yield
        finally:
            self._now = (before, self._now[1] + 1)

    def alive(self) -> None:
        """Something was achieved: the budget starts again."""
        doing, moves = self._now
        self._now = (doing, moves + 1)

    def step(self, seconds: float) -> None:
        """A step was done, which took so long."""
        self._steps.append(seconds)
        self.alive()

    @contextlib.contextmanager
    def prompt_end(self) -> Iterator[None]:
        """After a failure in the context, whatever surrounds it is to be closed soon."""
        try:
            yield
        except (Preempted, Diverged):
            raise
        except BaseException as error:
            # A save that is under way is finished first, but not on a disk that failed, nor while other processes wait for this one.
            in_vain = (
                isinstance(error, (OSError, SaveFailed)) or jax.process_count() > 1
            )
            self._closing = CLOSING if in_vain else BUDGETS["saving"] * self._patience
            self._error = error
            self.alive()
            raise

    def _budget(self, doing: str) -> float:
        if self._error is not None:
            return self._closing
        if (
            doing == "training" and not self._steps
        ):  # nothing is known of how long a step takes
            doing = "compiling"
        budget = BUDGETS[doing] * self._patience
        return (
            max(budget, SLOWER * statistics.median(self._steps))
            if self._steps
            else budget
        )

    def _look(self) -> None:
        tick = min(1.0, self._patience / TICKS)
        seen, waited, last = self._now, 0.0, time.monotonic()
        while not self._over.wait(tick):
            now = time.monotonic()
            waited += min(now - last, 2 * tick)  # a longer sleep was not the run's
            last = now
            if (current := self._now) != seen:
                seen, waited = current, 0.0
            elif waited > self._budget(seen[0]):
                self._end(seen[0], waited)

    def _end(self, doing: str, waited: float) -> None:
        """Says where every thread is, on the standard error and in the run directory, and ends the process."""
        if self._error is not None:
            sentence = "a library kept the process from closing its files"
            text, code = (
                "".join(traceback.format_exception(self._error)),
                getattr(self._error, "exit_code", 1),
            )
            reason = f"{type(self._error).__name__}: {self._error}"
        else:
            reason = sentence = (
                f"stuck while {doing}: nothing happened for {waited:.0f} s"
            )
            text, code = _stacks(), STUCK
        text = f"{text}\nprocess {self._process}: {sentence}; run the same command to go on"
        write_stderr(text)
        run_within(GRACE, lambda: self._record(reason, text))
        os._exit(code)

    def _record(self, reason: str, text: str) -> None:
        if self._attempt is not None:
            self._attempt.check_still_owner()
            self._attempt.run.set_status("failed", reason=reason)
            files.write(
                self._attempt.run.path / f"stuck-{self._process}.txt", text.encode()
            )


def _patience() -> float:
    told = os.environ.get(PATIENCE, FIVE_MINUTES)
    try:
        patience = float(told)
    except ValueError:
        patience = 0.0
    if not 0 < patience < float("inf"):
        raise ConfigError(
            f"{PATIENCE}={told} is not a number of seconds above 0: correct it, or leave it out"
        )
    return patience


def _stacks() -> str:
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file)
        file.seek(0)
        return file.read().decode(errors="replace")
