"""Does the run still move?

Watchdog: ends a process in which nothing happens any more, so that it can be started
again. A step may take ten times the median, or five minutes if that is more; other
activities have budgets of their own.

A thread counts the seconds during which it was awake, by a clock that nobody sets:
neither a changed clock nor a suspended process or machine uses up a budget. Each of
several processes has its own watchdog, so that those that wait for a stuck one leave as
well.
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

# Environment variable: seconds in place of five minutes. All budgets scale with it.
PATIENCE = "SPARSECOD_PATIENCE"
FIVE_MINUTES = 300.0

SLOWER = 10  # medians that a step may take
REMEMBERED = 101  # steps

# How many times the patience may pass until something is achieved: a step, a read, a
# batch of an evaluation, else the whole activity. The first step has the budget of
# compiling.
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

# Seconds for closing files after a save that failed. Orbax's threads may wait for it for
# minutes.
CLOSING = 20.0

TICKS = 20  # times that the thread looks within the patience


class Watchdog:
    """Watches the process while the context lasts."""

    def __init__(self):
        self._patience = _patience()
        # The activity, and a number that grows whenever something was achieved. The
        # thread reads both, so they are replaced together, which needs no lock.
        self._now = ("starting", 0)
        self._steps: collections.deque[float] = collections.deque(maxlen=REMEMBERED)
        self._attempt: Attempt | None = None
        self._process = 0
        self._error: BaseException | None = None
        self._closing = CLOSING
        self._over = threading.Event()

    def __enter__(self):
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *error):
        self._over.set()

    def report_to(self, attempt: Attempt) -> None:
        """Sets whose directory is to hold the status and the stacks of a stuck run."""
        # Read early: when JAX is stuck it may not answer.
        self._process = jax.process_index()
        self._attempt = attempt

    @contextlib.contextmanager
    def during(self, activity: str) -> Iterator[None]:
        """Gives the activity in the context a budget of its own, by `BUDGETS`."""
        before, achieved = self._now
        self._now = (activity, achieved + 1)
        try:
            yield
        finally:
            _, achieved = self._now
            self._now = (before, achieved + 1)

    def alive(self) -> None:
        """Something was achieved: the budget starts again."""
        activity, achieved = self._now
        self._now = (activity, achieved + 1)

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
            # In this order: once the thread sees the error it uses the budget.
            self._closing = self._closing_budget(error)
            self._error = error
            self.alive()
            raise

    def _closing_budget(self, error: BaseException) -> float:
        """Seconds for closing files after an error.

        A save in progress may be completed first; but not on a disk that failed, nor
        while other processes wait for this one.
        """
        disk_failed = isinstance(error, (OSError, SaveFailed))
        if disk_failed or jax.process_count() > 1:
            return CLOSING
        return BUDGETS["saving"] * self._patience

    def _budget(self, activity: str) -> float:
        """Seconds without progress that an activity may take."""
        if self._error is not None:
            return self._closing
        if not self._steps:
            # Nothing is known yet of how long a step takes.
            if activity == "training":
                activity = "compiling"
            return BUDGETS[activity] * self._patience
        slow_step = SLOWER * statistics.median(self._steps)
        return max(BUDGETS[activity] * self._patience, slow_step)

    def _watch(self) -> None:
        """The thread."""
        tick = min(1.0, self._patience / TICKS)
        last_now = self._now
        last_clock = time.monotonic()
        waited = 0.0
        while not self._over.wait(tick):
            clock = time.monotonic()
            elapsed = clock - last_clock
            last_clock = clock
            # A tick that took much longer was slept through: the process or the machine
            # was suspended, and so was the run.
            waited += min(elapsed, 2 * tick)
            now = self._now
            if now != last_now:
                last_now = now
                waited = 0.0
                continue
            activity, _ = now
            if waited > self._budget(activity):
                self._end(activity, waited)

    def _end(self, activity: str, waited: float) -> None:
        """Ends the process at once, without its help.

        The standard error and the run directory get the stacks of all threads, or the
        error after which the process did not end.
        """
        if self._error is None:
            reason = f"stuck while {activity}: nothing happened for {waited:.0f} s"
            sentence = reason
            details = _stacks()
            code = STUCK
        else:
            reason = f"{type(self._error).__name__}: {self._error}"
            sentence = "a library kept the process from closing its files"
            details = "".join(traceback.format_exception(self._error))
            code = getattr(self._error, "exit_code", 1)
        text = (
            f"{details}\nprocess {self._process}: {sentence}; "
            "run the same command to resume"
        )
        write_stderr(text)
        # The disk may be what the process is stuck at.
        run_within(GRACE, lambda: self._record(reason, text))
        os._exit(code)

    def _record(self, reason: str, text: str) -> None:
        if self._attempt is None:
            return
        self._attempt.check_still_owner()
        run = self._attempt.run
        run.set_status("failed", reason=reason)
        files.write(run.path / f"stuck-{self._process}.txt", text.encode())


def _patience() -> float:
    setting = os.environ.get(PATIENCE, FIVE_MINUTES)
    try:
        patience = float(setting)
    except ValueError:
        patience = 0.0
    if not 0 < patience < float("inf"):
        raise ConfigError(
            f"{PATIENCE}={setting} is not a number of seconds above 0: "
            "correct it, or leave it out"
        )
    return patience


def _stacks() -> str:
    """Where every thread is."""
    # faulthandler writes to a descriptor, so a buffer in memory will not do.
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file)
        file.seek(0)
        return file.read().decode(errors="replace")
