"""What does one NVIDIA GPU reach?

Aims: dense 1B at T=4096 50 % MFU, the MoE 400M/2B 35 % by activated FLOPs, statistics at most
2 %. Each case is the real train step of a published config, on random tokens, 32,768 per step where
nothing else is given. The table is Markdown.

Command:  python benchmarks/gpu.py [CASE ...]
"""

import contextlib
import sys
import time
from typing import NamedTuple
from unittest import mock

import jax
from paired import Stepper, program, without_statistics

from sparsecod_jax.config import Experiment, counts
from sparsecod_jax.config.load import load_experiment
from sparsecod_jax.parallel import devices

TOKENS, STEPS = 32768, 10
LOOP = ("execution.remat=dots",)
BEST = (*LOOP, "execution.unroll=True")
FULL_REMAT = ("execution.remat=full",)


class Case(NamedTuple):
    """What is measured."""

    config: str
    seq_len: int
    overrides: tuple[str, ...]
    # Of 32,768 tokens each. With 0 a step has that many tokens, and the number of microbatches
    # follows from the device's memory.
    microbatches: int = 0
    statistics: bool = True
    chunked: bool = True  # the cross-entropy

    @property
    def tokens(self) -> int:
        """A step."""
        return TOKENS * max(self.microbatches, 1)


CASES = {
    "dense_1b, T=4096": Case("dense_1b", 4096, BEST),
    "dense_1b, T=4096, no statistics": Case("dense_1b", 4096, BEST, statistics=False),
    "moe_400m_2b, T=4096": Case("moe_400m_2b", 4096, BEST),
    "moe_400m_2b, T=4096, 4 microbatches": Case(
        "moe_400m_2b", 4096, BEST, microbatches=4
    ),
    "moe_400m_2b, T=4096, no statistics": Case(
        "moe_400m_2b", 4096, BEST, statistics=False
    ),
    "dense_1b, T=4096, loop": Case("dense_1b", 4096, LOOP),
    "dense_1b, T=4096, loop, whole logits": Case("dense_1b", 4096, LOOP, chunked=False),
    "dense_1b, T=4096, loop, full remat": Case("dense_1b", 4096, FULL_REMAT),
    "dense_1b, T=4096, loop, full remat, XLA attention": Case(
        "dense_1b", 4096, ("execution.attention=xla", "execution.remat=full")
    ),
    "dense_1b, T=1024, loop": Case("dense_1b", 1024, LOOP),
    "dense_400m, T=4096, loop": Case("dense_400m", 4096, LOOP),
    "moe_400m_2b, T=4096, loop": Case("moe_400m_2b", 4096, LOOP),
    "moe_400m_2b, T=4096, loop, full remat": Case("moe_400m_2b", 4096, FULL_REMAT),
    "recipe_1b_32l, 8 of its blocks, T=4096, loop": Case(
        "recipe_1b_32l", 4096, (*LOOP, "model.n_layers=8")
    ),
}
HEADER = "case | tokens/s | step ms | MFU | MFU, whole attention | GiB | compile s"


def main(names: list[str]) -> None:
    unknown = sorted(set(names) - set(CASES))
    if unknown:
        raise SystemExit(f"there are no cases {unknown}: choose from {list(CASES)}")
    if jax.default_backend() != "gpu":
        raise SystemExit(
            f"this is a {jax.default_backend()}: run it where jax finds an NVIDIA GPU (extra gpu)"
        )
    usual = f"{TOKENS:,} tokens per step where nothing else is given"
    print(
        f"{jax.devices()[0].device_kind}, jax {jax.__version__}, bfloat16, {usual};"
        f" {counts.FLOPS_CONVENTION}\n"
    )
    print(f"| {HEADER} |\n|{'---|' * (HEADER.count('|') + 1)}")
    for name in names or CASES:
        print(f"| {name} | {_row(CASES[name])} |", flush=True)


def _row(case: Case) -> str:
    experiment = _experiment(case)
    try:
        return _measured(case, experiment)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return " | ".join(["out of memory", *["n/a"] * (HEADER.count("|") - 1)])


def _measured(case: Case, experiment: Experiment) -> str:
    with contextlib.ExitStack() as while_compiling:
        if not case.statistics:
            while_compiling.enter_context(without_statistics())
        if not case.chunked:
            while_compiling.enter_context(
                mock.patch("sparsecod_jax.model.loss.LOGITS", sys.maxsize)
            )
        began = time.perf_counter()
        step = Stepper(program(experiment))
    compiling = time.perf_counter() - began
    step()
    began = time.perf_counter()
    step.go(STEPS)
    seconds = (time.perf_counter() - began) / STEPS
    memory = step.compiled.memory_analysis()
    gibibytes = (
        (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 2**30
        if memory
        else float("nan")
    )
    speed = case.tokens / seconds
    mfu = _utilisations(experiment, speed)
    times = f"{speed:,.0f} | {seconds * 1e3:.0f}"
    return f"{times} | {mfu} | {gibibytes:.0f} | {compiling:.0f}"


def _experiment(case: Case) -> Experiment:
    batch = (
        f"global_batch={case.tokens // case.seq_len}",
        f"execution.accumulation={case.microbatches}",
        "evaluation.batch_size=8",
    )
    settings = (f"data.seq_len={case.seq_len}", *batch, *case.overrides)
    return load_experiment(
        f"configs/{case.config}.py:paper",
        [f"--config.{setting}" for setting in settings],
    )


def _utilisations(experiment: Experiment, tokens_per_second: float) -> str:
    """MFU by the package's convention, and with attention counted as if it were not causal."""
    device = devices.find(jax.devices()[0].device_kind)
    if device is None:
        return "n/a | n/a"
    causal = counts.flops_per_token(experiment.model, experiment.data.seq_len)
    attention = causal - counts.flops_per_token(experiment.model, 0)
    return " | ".join(
        f"{tokens_per_second * flops / device.peak_flops:.1%}"
        for flops in (causal, causal + attention)
    )


if __name__ == "__main__":
    main(sys.argv[1:])
