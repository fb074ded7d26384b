"""How does status.json stay true, however a run ends?

Run status: written when an attempt begins and when it ends.
"""

import contextlib
import sys
from collections.abc import Iterator

from sparsecod_jax.errors import Diverged, Fenced, Preempted
from sparsecod_jax.parallel.processes import is_first
from sparsecod_jax.shell.shown import shown
from sparsecod_jax.shell.stopping import STOP
from sparsecod_jax.storage.attempts import Attempt
from sparsecod_jax.storage.rundir import Status


@contextlib.contextmanager
def recorded_status(attempt: Attempt) -> Iterator[None]:
    """Keeps status.json true, as long as the directory belongs to this attempt."""
    _record(attempt, "running")
    # A signal may end the process at once, without an exception that passes here.
    STOP.record = lambda: _record(attempt, "preempted")
    try:
        yield
    except Fenced:  # the status is that of the newer attempt
        raise
    except Preempted:
        _record_end(attempt, "preempted")
        raise
    except Diverged as error:
        _record_end(attempt, "diverged", reason=str(error))
        raise
    except BaseException as error:
        _record_end(attempt, "failed", reason=f"{type(error).__name__}: {error}")
        raise
    finally:
        STOP.record = lambda: None
    _record_end(attempt, "finished")


def _record(attempt: Attempt, status: Status, **details) -> None:
    if is_first():
        attempt.check_still_owner()
        attempt.run.set_status(status, attempt=attempt.number, **details)


def _record_end(attempt: Attempt, status: Status, **details) -> None:
    """Records a status, but not at any price: the checkpoints show how far a run is."""
    try:
        _record(attempt, status, **details)
    except OSError as error:
        problem = f"{shown(attempt.run.status)} can't be written ({error.strerror})"
        print(problem, file=sys.stderr, flush=True)
