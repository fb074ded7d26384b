"""How far is the run, and how fast?

Training speed: tokens per second, model FLOPs utilisation (MFU) and the remaining time.
"""

import datetime
import time

import jax

from sparsecod_jax.config import Experiment, counts
from sparsecod_jax.parallel import devices


class Progress:
    """Counts the seconds that training takes.

    Saving is included; evaluation and compilation are not.
    """

    def __init__(self, experiment: Experiment, step: int, seconds: float):
        self._experiment = experiment
        self.seconds = seconds
        self._last = time.perf_counter()
        self._at_last_line = (step, seconds)
        self._flops = counts.flops_per_token(experiment.model, experiment.data.seq_len)
        self._device = devices.find(jax.devices()[0].device_kind)

    @property
    def convention(self) -> str:
        """What an MFU means here."""
        if self._device:
            return f"MFU counts {counts.FLOPS_CONVENTION}"
        return "MFU n/a: the peak of this device is not known"

    def resume(self) -> None:
        """Leaves out the time since the last step: something else was done."""
        self._last = time.perf_counter()

    def step(self) -> float:
        """Seconds that the step which just ended took."""
        now = time.perf_counter()
        elapsed = now - self._last
        self._last = now
        self.seconds += elapsed
        return elapsed

    def mfu(self, tokens_per_second: float) -> float | None:
        """Share of the devices' peak, None where that is not known."""
        if not self._device:
            return None
        peak_flops = self._device.peak_flops * jax.device_count()
        return tokens_per_second * self._flops / peak_flops

    def line(self, metrics: dict) -> str:
        """One console line; its speed is the mean since the line before."""
        step, steps = metrics["step"], self._experiment.steps
        last_step, last_seconds = self._at_last_line
        self._at_last_line = (step, self.seconds)

        seconds_per_step = (self.seconds - last_seconds) / max(step - last_step, 1)
        tokens_per_second = self._experiment.tokens_per_step / seconds_per_step
        remaining = round((steps - step) * seconds_per_step)
        parts = [
            f"step {step}/{steps}",
            _loss(metrics),
            f"{tokens_per_second:,.0f} tokens/s",
            f"MFU {_percent(self.mfu(tokens_per_second))}",
            f"ETA {datetime.timedelta(seconds=remaining)}",
        ]
        return " | ".join(parts)


def _loss(metrics: dict) -> str:
    if metrics["loss"] is None:
        return "loss not finite"
    return f"loss {metrics['loss']:.4f} | perplexity {metrics['perplexity']:.2f}"


def _percent(share: float | None) -> str:
    return "n/a" if share is None else f"{share:.1%}"
