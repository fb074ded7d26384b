"""Is the run asked to stop?

Preemption: with several processes the answer must be the same on all of them at the
same moment, which JAX's preemption service arranges. It listens to SIGTERM itself, and
a Python handler would silently disable it. With one process that service does nothing,
and `stopping` receives the signals.
"""

import jax
from jax.experimental import multihost_utils

from sparsecod_jax.shell.stopping import STOP


class Interrupted(Exception):
    """An evaluation was left, as the run is asked to stop."""


class PreemptionGuard:
    """Checked by the loop after each step, and by an evaluation after each batch."""

    def __init__(self):
        self._several = jax.distributed.is_initialized()
        # Identifies a check; the same on all processes, as all check at the same points.
        self._checks = 0
        self.stopping = False  # the newest answer
        if not self._several:
            STOP.hold()

    def preempted(self) -> bool:
        """Whether to save and stop here.

        The answer is the same on every process, and final once it is true.
        """
        if not self.stopping:
            self._checks += 1
            self.stopping = self._check()
        return self.stopping

    def _check(self) -> bool:
        if self._several:
            # The service picks a check that no process has reached yet, and answers
            # true to all of them there.
            return multihost_utils.reached_preemption_sync_point(self._checks)
        return STOP.signal_name is not None
