"""Which programs does a run need, and is there memory for them?

Compilation: the programs are compiled before a run directory is touched, so that a run
that can't begin leaves nothing behind.
"""

import contextlib
import dataclasses
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from sparsecod_jax.config import Experiment
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.parallel.devices import GIB
from sparsecod_jax.parallel.processes import log_phase
from sparsecod_jax.train.step import Program

OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"
CGROUP = Path("/sys/fs/cgroup/memory.max")  # bytes that a container may use


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The train step with and without the costly statistics, as the run needs them."""

    steps: dict[bool, Any]  # by whether it has moments
    seconds: float  # that compilation took


def compile_steps(program: Program) -> Compiled:
    """Compiles the train steps between which the run alternates.

    Raises:
      ConfigError: memory does not suffice.
    """
    every = program.experiment.log.moments_every
    needed = {0: [False], 1: [True]}.get(every, [False, True])
    began = time.perf_counter()
    steps = {}
    for with_moments in needed:
        suffix = " with moments" if with_moments else ""
        log_phase(f"compiling the train step{suffix}")
        with explained(program.experiment):
            steps[with_moments] = program.lower(with_moments=with_moments).compile()
        _check_memory(program, steps[with_moments])
    seconds = time.perf_counter() - began
    log_phase(f"compiled in {seconds:.1f} s")
    return Compiled(steps, seconds)


@contextlib.contextmanager
def explained(experiment: Experiment) -> Iterator[None]:
    """Makes of a lack of memory a ConfigError that names what to change."""
    try:
        yield
    except MemoryError as error:
        raise ConfigError(
            f"this machine has too little memory for the run: {_advice(experiment)}"
        ) from error
    except jax.errors.JaxRuntimeError as error:
        if OUT_OF_MEMORY not in str(error):
            raise
        raise ConfigError(
            f"memory does not suffice ({_first_line(error)}): {_advice(experiment)}"
        ) from error


def _check_memory(program: Program, compiled) -> None:
    """Compares what a step takes with what a device has, where both are known."""
    analysis = compiled.memory_analysis()
    limit = _limit()
    if analysis is None or limit is None:
        return
    state = analysis.argument_size_in_bytes
    temporary = analysis.temp_size_in_bytes
    needed = state + temporary
    if needed <= limit:
        return
    fitting = _microbatches_that_fit(program, state, temporary, limit)
    advice = _advice(program.experiment, microbatches=fitting)
    raise ConfigError(
        f"a step takes {needed / GIB:.1f} GiB "
        f"({state / GIB:.1f} of them parameters, optimizer and batch) "
        f"and a device has {limit / GIB:.1f}: {advice}"
    )


def _limit() -> float | None:
    """Bytes that a device of this process has; None where that is not known."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return _host_memory() / jax.local_device_count()
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit")


def _host_memory() -> int:
    """Bytes that this process may take: the machine's, the user's or the container's."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    soft_limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft_limit != resource.RLIM_INFINITY:
        limits.append(soft_limit)
    if CGROUP.exists():
        text = CGROUP.read_text().strip()
        if text.isdigit():  # else it is "max"
            limits.append(int(text))
    return min(limits)


def _microbatches_that_fit(
    program: Program, state: int, temporary: int, limit: float
) -> int | None:
    """The smallest number of microbatches with which a step fits; None if none does."""
    now, mesh = program.layout.microbatches, program.layout.mesh
    rows = program.experiment.global_batch // (mesh.data * mesh.fsdp * mesh.expert)
    for count in range(now + 1, rows + 1):
        # Most temporaries shrink with the rows of a microbatch.
        needed = state + temporary * now / count
        if rows % count == 0 and needed <= limit:
            return count
    return None


def _advice(experiment: Experiment, microbatches: int | None = None) -> str:
    if microbatches:
        return f"try --config.execution.accumulation={microbatches}"
    smaller = "lower model.d_model or model.n_layers, or take more devices"
    if experiment.execution.remat != "full":
        return (
            "try --config.execution.remat=full and more of "
            f"--config.execution.accumulation, or {smaller}"
        )
    return smaller


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")
