"""How is a speed ratio measured on a noisy machine?

The two sides take turns, and the median of the ratios counts.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from sparsecod_jax import config
from sparsecod_jax.parallel import xla_flags
from sparsecod_jax.train.step import Batch, Program, build

xla_flags.compute_own_reductions()  # as the command line does


def compare(
    first: Callable[[], object],
    second: Callable[[], object],
    rounds: int,
    clock=time.perf_counter,
) -> str:
    """Seconds of each and their ratio, medians over rounds.

    Who goes first alternates, and one round more warms up.
    """
    times = []
    for number in range(rounds + 1):
        pair = [
            (seconds(call, clock), place)
            for place, call in sorted(
                enumerate((first, second)), reverse=bool(number % 2)
            )
        ]
        times.append(
            [seconds for seconds, _ in sorted(pair, key=lambda timed: timed[1])]
        )
    return describe(np.array(times[1:]))


def describe(times: np.ndarray) -> str:
    """One line for paired seconds, [rounds, 2].

    The median ratio with the 95 % interval of a bootstrap over rounds.
    """
    ratios = times[:, 0] / times[:, 1]
    drawn = np.median(
        np.random.default_rng(0).choice(ratios, (2000, len(ratios))), axis=1
    )
    low, high = np.quantile(drawn, [0.025, 0.975])
    slow, fast = np.median(times, axis=0)
    interval = f"[{low:.4f}, {high:.4f}]"
    return (
        f"{slow:.3f} s against {fast:.3f} s, ratio {np.median(ratios):.4f} {interval},"
        f" {len(ratios)} pairs"
    )


def seconds(call: Callable[[], object], clock=time.perf_counter) -> float:
    """How long a call takes."""
    began = clock()
    call()
    return clock() - began


def experiment(
    *, d_model: int = 256, n_layers: int = 8, seq_len: int = 256, rows: int = 8
) -> config.Experiment:
    """A model on one device, large enough that what surrounds the step is seen in proportion."""
    return config.Experiment(
        steps=1000,
        global_batch=rows,
        model=config.Model(
            d_model=d_model,
            n_layers=n_layers,
            n_heads=4,
            d_ff=4 * d_model,
            vocab_size=2048,
            compute_dtype="float32",
        ),
        data=config.Data(seq_len=seq_len),
        schedule=config.Schedule(warmup_steps=10),
        mesh=config.Mesh(1, 1, 1, 1),
        evaluation=config.Evaluation(
            every=0, seq_len=seq_len, batch_size=8, max_tokens=seq_len * 8
        ),
        log=config.Log(every=10, moments_every=0),
    )


def program(exp: config.Experiment) -> Program:
    """Its program on one device."""
    return build(exp, jax.devices()[:1])


@contextlib.contextmanager
def without_statistics() -> Iterator[None]:
    """Steps compiled here measure nothing in their blocks but the health of the router.

    That is computed along with its losses.
    """
    with (
        mock.patch("sparsecod_jax.model.block.block_stats", return_value={}),
        mock.patch(
            "sparsecod_jax.model.transformer.variance", return_value=jnp.float32(0)
        ),
        mock.patch("sparsecod_jax.train.step.layer_norms", return_value=jnp.float32(0)),
    ):
        yield


class Stepper:
    """A compiled step with its state; each call is one step, its metrics fetched."""

    def __init__(self, built: Program):
        self.experiment, self.layout = built.experiment, built.layout
        tokens = built.abstract_batch.tokens
        ids = (
            np.random.default_rng(0)
            .integers(0, self.experiment.model.vocab_size, tokens.shape)
            .astype(np.int32)
        )
        self.batch = Batch(jax.device_put(ids, tokens.sharding))
        self.compiled, self.state = (
            built.lower(with_moments=False).compile(),
            built.init(),
        )

    def __call__(self):
        self.state, metrics = self.compiled(self.state, self.batch)
        return jax.device_get(metrics)

    def go(self, steps: int) -> None:
        """Fetches the metrics of a step when the next one runs, as the training loop does."""
        late = None
        for _ in range(steps):
            self.state, metrics = self.compiled(self.state, self.batch)
            jax.device_get(late)
            late = metrics
        jax.device_get(late)
