"""Is the machine being taken away?

With several processes the answer must be the same on all of them at the same step, which JAX's preemption service arranges; it listens
to SIGTERM itself, and a Python handler would silently disable it. With one process that service does nothing, so a handler is installed.
"""

import signal

import jax
from jax.experimental import multihost_utils


class PreemptionGuard:
    """While the context lasts, SIGTERM becomes an answer that the loop asks for once a step."""

    def __init__(self):
        self._several = jax.process_count() > 1
        self._signalled = False

    def __enter__(self):
        self._before = None if self._several else signal.signal(signal.SIGTERM, self._remember)
        return self

    def __exit__(self, *error):
        if not self._several:
            signal.signal(signal.SIGTERM, self._before)

    def _remember(self, signum, frame):
        self._signalled = True

    def preempted(self, step: int) -> bool:
        """Whether to save and stop at `step`; the same on every process."""
        return multihost_utils.reached_preemption_sync_point(step) if self._several else self._signalled
