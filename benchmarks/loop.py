"""What does the loop add to the bare compiled step?

Aim: within 3 %, with one save per 200 steps or 5 minutes. The loop and the bare step take
turns, a few dozen steps each; a save is timed apart and charged once per 200 steps. Evaluation,
compilation and the every-k statistics are not part of it: their own lines in a run's log tell
their times.

Command:  python benchmarks/loop.py
"""

import dataclasses
import tempfile
import time

import jax
import numpy as np
from etils import epath
from paired import Stepper, describe, experiment, program

from sparsecod_jax import config
from sparsecod_jax.data.prepare import Request, prepare
from sparsecod_jax.storage.checkpoint import Checkpointer
from sparsecod_jax.storage.rundir import RunDir
from sparsecod_jax.train.loop import train

ROUNDS, STEPS, LEFT_OUT = 6, 20, 4


def seconds_of_loop(exp: config.Experiment, folder: str) -> float:
    """Mean seconds per step of a whole run, its first and last steps left out.

    The last waits for its save.
    """
    train(exp, folder)
    lines = RunDir(epath.Path(folder)).read_metrics()[LEFT_OUT:-1]
    return float(
        np.mean([exp.tokens_per_step / line["tokens_per_second"] for line in lines])
    )


def seconds_of_step(stepper: Stepper) -> float:
    """Mean seconds a bare step."""
    began = time.perf_counter()
    for _ in range(STEPS - LEFT_OUT):
        stepper()
    return (time.perf_counter() - began) / (STEPS - LEFT_OUT)


def seconds_of_save(built, folder: str) -> float:
    """From the call until the arrays are on disk.

    It is counted as if nothing of it could overlap with the device's work.
    """
    checkpointer, state = Checkpointer(RunDir(epath.Path(folder)), keep=2), built.init()
    times = []
    for step in (1, 2, 3):
        began = time.perf_counter()
        checkpointer.save(step, {"state": state}, {})
        checkpointer.wait()
        times.append(time.perf_counter() - began)
    checkpointer.close()
    return times[-1]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as root:
        jax.config.update("jax_compilation_cache_dir", f"{root}/cache")
        prepare(Request("sotu", vocab_size=2048), f"{root}/data")
        base = experiment(seq_len=128)
        exp = dataclasses.replace(
            base, steps=STEPS, data=dataclasses.replace(base.data, path=f"{root}/data")
        )
        built = program(exp)
        stepper = Stepper(built)
        pairs = [
            (seconds_of_loop(exp, f"{root}/{number}"), seconds_of_step(stepper))
            for number in range(ROUNDS)
        ]
        bare = float(np.median([step for _, step in pairs]))
        save = seconds_of_save(built, f"{root}/save")
        print(
            f"loop against bare step: {describe(np.array(pairs))} of {STEPS - LEFT_OUT} steps"
        )
        print(
            f"one save {save:.2f} s, {save / (200 * bare):.4f} of 200 steps,"
            f" {save / 300:.4f} of 5 minutes"
        )
