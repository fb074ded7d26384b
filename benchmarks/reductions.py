"""What does a step cost when XLA computes its own sums on CPUs?

Its time over that with the default flags.

Usage: reductions.py [PAIRS], from the root of a checkout. Each of a pair is a process of its own.
"""

import os
import subprocess
import sys
import time

import jax
import numpy as np

from sparsecod_jax.config.load import load_experiment
from sparsecod_jax.parallel.xla_flags import OWN_REDUCTIONS
from sparsecod_jax.train.step import Batch, build

STEPS, WARM_UP = 14, 3
MEASURE = "measure"


def seconds_of_a_step() -> float:
    """The median of the smoke config's steps in this process."""
    experiment = load_experiment("configs/smoke.py:nano")
    program = build(experiment, jax.devices())
    step, state = program.lower(with_moments=False).compile(), program.init()
    shape = (experiment.global_batch, experiment.data.seq_len + 1)
    ids = np.random.default_rng(0).integers(
        0, experiment.model.vocab_size, shape, np.int32
    )
    batch = Batch(jax.device_put(ids, program.abstract_batch.tokens.sharding))
    seconds = []
    for _ in range(STEPS):
        began = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds[WARM_UP:]))


def _in_a_process(flags: str) -> float:
    surroundings = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, __file__, MEASURE]
    return float(
        subprocess.run(
            command, env=surroundings, capture_output=True, text=True, check=True
        ).stdout
    )


def main(argument: str = "5") -> None:
    if argument == MEASURE:
        print(seconds_of_a_step())
        return
    ratios = [
        _in_a_process(OWN_REDUCTIONS) / _in_a_process("") for _ in range(int(argument))
    ]
    print(
        f"own over default: {np.median(ratios):.3f}"
        f" [{min(ratios):.3f}, {max(ratios):.3f}], {len(ratios)} pairs"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
