"""Who hears what was measured? metrics.jsonl every step, TensorBoard and the console every few.

metrics.jsonl is the truth: one object a step, unique by step, also after a resume. A number that is not finite is null there, and named
under "nonfinite". In an object store, which can't append, both files appear whole at each checkpoint.
"""

import concurrent.futures
import contextlib
import os
from typing import Any

import numpy as np
import tensorboardX

from sparsecod_jax import files, journal
from sparsecod_jax.rundir import Attempt, RunDir


def plain(metrics: dict[str, Any]) -> dict[str, Any]:
    """Metrics as strict JSON values: arrays as lists, and null for what is not finite."""
    values = {name: np.asarray(value).tolist() for name, value in metrics.items()}
    nonfinite = sorted(name for name, value in metrics.items() if not np.all(np.isfinite(value)))
    for name in nonfinite:
        values[name] = _without_nonfinite(values[name])
    return values | ({"nonfinite": nonfinite} if nonfinite else {})


def _without_nonfinite(value):
    if isinstance(value, list):
        return [_without_nonfinite(item) for item in value]
    return value if np.isfinite(value) else None


class Writers:
    """Writes the metrics of an attempt; continues after `restored_step`, dropping what a crash left beyond it."""

    def __init__(self, attempt: Attempt, restored_step: int):
        self._attempt, self._mirror = attempt, files.Mirror(attempt.run.path)
        local = RunDir(self._mirror.path)
        files.write(local.metrics, b"".join(text for _, text in attempt.run.begin_metrics(restored_step)))
        self._jsonl = local.metrics.open("a")
        self._tensorboard = tensorboardX.SummaryWriter(os.fspath(local.tensorboard), purge_step=restored_step + 1)
        self._thread = concurrent.futures.ThreadPoolExecutor(max_workers=1)
        self._pending: concurrent.futures.Future | None = None

    def write(self, metrics: dict[str, Any], *, tensorboard: bool) -> None:
        """Appends one step; `metrics` holds "step" and plain values."""
        self._jsonl.write(journal.line(metrics))
        self._jsonl.flush()
        if tensorboard:
            self._raise_pending()
            self._pending = self._thread.submit(self._add_scalars, metrics)

    def _add_scalars(self, metrics: dict[str, Any]) -> None:
        """TensorBoard's share: one curve a number, name/layer_07 for a block's."""
        step = metrics["step"]
        for name, value in metrics.items():
            if isinstance(value, list) and name != "nonfinite":
                for layer, number in enumerate(value):
                    if number is not None:
                        self._tensorboard.add_scalar(f"{name}/layer_{layer:02d}", number, step)
            elif isinstance(value, (int, float)) and name != "step":
                self._tensorboard.add_scalar(name, value, step)

    def _raise_pending(self) -> None:
        if self._pending is not None:
            self._pending.result()

    def sync(self) -> None:
        """Returns when all lines are on disk: before a checkpoint names them.

        Raises:
          Fenced: a newer attempt writes these files now.
        """
        self._jsonl.flush()
        os.fsync(self._jsonl.fileno())
        self._raise_pending()
        self._tensorboard.flush()
        self._upload()

    def _upload(self) -> None:
        self._attempt.check_still_owner()
        self._mirror.upload()

    def close(self) -> None:
        with contextlib.closing(self._mirror):
            self._thread.shutdown()
            self._tensorboard.close()
            self._jsonl.close()
            self._upload()
        self._raise_pending()
