"""Is the run asked to stop?

With several processes the answer must be the same on all of them at the same moment, which JAX's preemption
service arranges; it listens to SIGTERM itself, and a Python handler would silently disable it. With one
process that service does nothing, and `stopping` hears the signals.
"""

import jax
from jax.experimental import multihost_utils

from sparsecod_jax.shell.stopping import STOP


class Interrupted(Exception):
    """An evaluation was left, as the run is asked to stop."""


class PreemptionGuard:
    """The question that the loop asks after each step, and an evaluation after each batch."""

    def __init__(self):
        self._several = jax.distributed.is_initialized()
        self._asked = 0  # alike on all processes, as they ask at the same places
        self.stopping = False  # the newest answer
        if not self._several:
            STOP.hold()

    def preempted(self) -> bool:
        """Whether to save and stop here; the same on every process, and for good once it is true."""
        if not self.stopping:
            self._asked += 1
            self.stopping = self._answer()
        return self.stopping

    def _answer(self) -> bool:
        if self._several:
            return multihost_utils.reached_preemption_sync_point(self._asked)
        return STOP.signal_name is not None
