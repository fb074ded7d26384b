"""What do the watchdog and the comparison of token files add to a step? Aim: at most 1 %.

Whole runs with both and with neither take turns; the data counts as large, so that every block is
compared when it is first read, and a thread looks through the rest.

Command:  python benchmarks/watching.py
"""

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator
from unittest import mock

import jax
import numpy as np
from loop import seconds_of_loop
from paired import describe, experiment

from sparsecod_jax import config
from sparsecod_jax.data import store
from sparsecod_jax.data.blocks import Blocks
from sparsecod_jax.data.prepare import Request, prepare
from sparsecod_jax.train.watchdog import Watchdog

ROUNDS, STEPS = 12, 24


@contextlib.contextmanager
def _unwatched() -> Iterator[None]:
    """Nothing is compared, and no watchdog looks on."""
    nothing = mock.Mock(return_value=None)
    with contextlib.ExitStack() as patches:
        for owner, name in ((Blocks, "check"), (Blocks, "watch"), (Watchdog, "_look"), (Watchdog, "step")):
            patches.enter_context(mock.patch.object(owner, name, nothing))
        yield


def _seconds(exp: config.Experiment, watched: bool) -> float:
    with tempfile.TemporaryDirectory() as folder, contextlib.nullcontext() if watched else _unwatched():
        return seconds_of_loop(exp, f"{folder}/run")


def main() -> None:
    with tempfile.TemporaryDirectory() as root, mock.patch.object(store, "SMALL", 0):
        jax.config.update("jax_compilation_cache_dir", f"{root}/cache")
        prepare(Request("sotu", vocab_size=2048), f"{root}/data")
        base = experiment(seq_len=128)
        exp = dataclasses.replace(base, steps=STEPS, data=dataclasses.replace(base.data, path=f"{root}/data"))
        _seconds(exp, watched=True)  # compiles
        times = np.zeros((ROUNDS, 2))
        for number, row in enumerate(times):
            for place in (0, 1) if number % 2 else (1, 0):
                row[place] = _seconds(exp, watched=place == 0)
        print(f"watched against unwatched, a step: {describe(times)}")


if __name__ == "__main__":
    main()
