"""What do the comparison of token files and the watchdog add to a step? Aim: at most 1 %.

The data counts as large, so that each block is compared when it is first read. What the
comparison adds to reading the windows of a step, and the calls of the watchdog, are timed by
themselves and set against a step: in a whole run they would drown in its noise. The thread that
looks through the rest of large data takes SHARE of one core by itself.

Command:  python benchmarks/watching.py
"""

import dataclasses
import tempfile
from unittest import mock

import numpy as np
from etils import epath
from paired import Stepper, experiment, program, seconds

from sparsecod_jax import config
from sparsecod_jax.data import store
from sparsecod_jax.data.blocks import SHARE, Blocks
from sparsecod_jax.data.prepare import Request, prepare
from sparsecod_jax.data.store import Windows
from sparsecod_jax.train.watchdog import Watchdog

ROUNDS, STEPS = 7, 20


def _read(exp: config.Experiment, directory: epath.Path) -> None:
    """Reads the windows of so many steps, each block for the first time."""
    manifest = store.read_manifest(directory, "sparsecod data")
    windows = Windows(directory, manifest, manifest.train, exp.data.seq_len)
    order = np.random.default_rng(0).permutation(len(windows))
    for number in range(STEPS * exp.global_batch):
        windows[int(order[number % len(order)])]


def _watch() -> None:
    """The calls of the loop to the watchdog over so many steps."""
    with Watchdog() as watchdog:
        for _ in range(STEPS):
            with watchdog.during("reading data"):
                pass
            watchdog.step(0.1)


def _median(call, *args) -> float:
    return float(np.median([seconds(lambda: call(*args)) for _ in range(ROUNDS)]))


def main() -> None:
    with tempfile.TemporaryDirectory() as root, mock.patch.multiple(store, SMALL=0):
        directory = epath.Path(root) / "data"
        prepare(Request("sotu", vocab_size=2048), str(directory))
        exp = experiment(seq_len=128)
        exp = dataclasses.replace(
            exp, data=dataclasses.replace(exp.data, path=str(directory))
        )
        compared = _median(_read, exp, directory)
        with mock.patch.object(Blocks, "check"):
            read = _median(_read, exp, directory)
        watched = _median(_watch)
        stepper = Stepper(program(exp))
        step = _median(stepper)
    added = (compared - read) / STEPS
    print(
        f"a step {step * 1e3:.1f} ms, comparing {added * 1e6:.0f} us,"
        f" watchdog {watched / STEPS * 1e6:.0f} us"
    )
    print(
        f"together {(added + watched / STEPS) / step:.4%} of a step;"
        f" the thread {SHARE:.0%} of a core"
    )


if __name__ == "__main__":
    main()
