"""How far, and how fast? Tokens a second, model FLOPs utilisation and the time that remains."""

import datetime
import time

import jax

from sparsecod_jax.config import Experiment, counts
from sparsecod_jax.parallel import devices


class Progress:
    """Counts the seconds that training takes, saving included; evaluation and compilation are not."""

    def __init__(self, experiment: Experiment, step: int, seconds: float):
        self._experiment = experiment
        self.seconds = seconds
        self._last = time.perf_counter()
        self._said = (step, seconds)  # step and seconds at the last console line
        self._flops = counts.flops_per_token(experiment.model, experiment.data.seq_len)
        self._device = devices.find(jax.devices()[0].device_kind)

    @property
    def convention(self) -> str:
        """What an MFU means here."""
        return (
            f"MFU counts {counts.FLOPS_CONVENTION}"
            if self._device
            else "MFU n/a: the peak of this device is not known"
        )

    def resume(self) -> None:
        """Leaves out the time since the last step: something else was done."""
        self._last = time.perf_counter()

    def step(self) -> float:
        """Seconds that the step which just ended took."""
        now = time.perf_counter()
        elapsed, self._last = now - self._last, now
        self.seconds += elapsed
        return elapsed

    def mfu(self, tokens_per_second: float) -> float | None:
        """Share of the devices' peak, None where that is not known."""
        return (
            tokens_per_second
            * self._flops
            / (self._device.peak_flops * jax.device_count())
            if self._device
            else None
        )

    def line(self, metrics: dict) -> str:
        """One console line; its speed is the mean since the line before."""
        step, steps = metrics["step"], self._experiment.steps
        said_step, said_seconds = self._said
        seconds_per_step = (self.seconds - said_seconds) / max(step - said_step, 1)
        self._said = (step, self.seconds)
        tokens_per_second = self._experiment.tokens_per_step / seconds_per_step
        mfu = self.mfu(tokens_per_second)
        loss = (
            "not finite"
            if metrics["loss"] is None
            else f"{metrics['loss']:.4f} | perplexity {metrics['perplexity']:.2f}"
        )
        return (
            f"step {step}/{steps} | loss {loss} | {tokens_per_second:,.0f} tokens/s | MFU {'n/a' if mfu is None else f'{mfu:.1%}'}"
            f" | ETA {datetime.timedelta(seconds=round((steps - step) * seconds_per_step))}"
        )
