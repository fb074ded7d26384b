"""What does one NVIDIA GPU reach? Aims: dense 1B at T=4096 50 % MFU, the mixture 400M/2B 35 % by activated FLOPs, statistics at most 2 %.

Each case is the real train step of a published config, on 32,768 random tokens a step. The table is Markdown, for docs/benchmarks.

Command:  python benchmarks/gpu.py [CASE ...]
"""

import contextlib
import sys
import time

import jax
from paired import Stepper, program, without_statistics

from sparsecod_jax import config_file, counts, devices
from sparsecod_jax.config import Experiment

TOKENS, STEPS = 32768, 5
BEST = ("execution.attention=cudnn", "execution.remat=dots")
FULL_REMAT = ("execution.attention=cudnn", "execution.remat=full")
CASES = {
    "dense_1b, T=4096": ("dense_1b", 4096, BEST),
    "dense_1b, T=4096, full remat": ("dense_1b", 4096, FULL_REMAT),
    "dense_1b, T=4096, attention by XLA": ("dense_1b", 4096, ("execution.attention=xla", "execution.remat=full")),
    "dense_1b, T=1024": ("dense_1b", 1024, BEST),
    "dense_400m, T=4096": ("dense_400m", 4096, BEST),
    "moe_400m_2b, T=4096": ("moe_400m_2b", 4096, BEST),
    "moe_400m_2b, T=4096, full remat": ("moe_400m_2b", 4096, FULL_REMAT),
}
WITHOUT_STATISTICS = ("dense_1b, T=4096", "moe_400m_2b, T=4096")
HEADER = "case | tokens/s | step ms | MFU | MFU, whole attention | GiB | compile s"


def main(names: list[str]) -> None:
    unknown = sorted(set(names) - set(CASES))
    if unknown:
        raise SystemExit(f"there are no cases {unknown}: choose from {list(CASES)}")
    if jax.default_backend() != "gpu":
        raise SystemExit(f"this is a {jax.default_backend()}: run it where jax finds an NVIDIA GPU (extra gpu)")
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, bfloat16, {TOKENS:,} tokens a step; {counts.FLOPS_CONVENTION}\n")
    print(f"| {HEADER} |\n|{'---|' * (HEADER.count('|') + 1)}")
    for name in names or CASES:
        print(_row(name, contextlib.nullcontext()), flush=True)
        if name in WITHOUT_STATISTICS:
            print(_row(name, without_statistics(), ", no statistics"), flush=True)


def _row(name: str, context: contextlib.AbstractContextManager, suffix: str = "") -> str:
    experiment = _experiment(*CASES[name])
    with context:
        began = time.perf_counter()
        step = Stepper(program(experiment))
    compiling = time.perf_counter() - began
    step()
    began = time.perf_counter()
    for _ in range(STEPS):
        step()
    seconds = (time.perf_counter() - began) / STEPS
    memory = step.compiled.memory_analysis()
    gibibytes = (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 2**30 if memory else float("nan")
    mfu = _utilisations(experiment, TOKENS / seconds)
    return f"| {name}{suffix} | {TOKENS / seconds:,.0f} | {seconds * 1e3:.0f} | {mfu} | {gibibytes:.0f} | {compiling:.0f} |"


def _experiment(name: str, seq_len: int, overrides: tuple[str, ...]) -> Experiment:
    sizes = (f"data.seq_len={seq_len}", f"global_batch={TOKENS // seq_len}", "evaluation.batch_size=8")
    return config_file.load(f"configs/{name}.py:paper", [f"--config.{setting}" for setting in (*sizes, *overrides)])


def _utilisations(experiment: Experiment, tokens_per_second: float) -> str:
    """MFU by the package's convention, and with attention counted as if it were not causal."""
    device = devices.find(jax.devices()[0].device_kind)
    if device is None:
        return "n/a | n/a"
    causal = counts.flops_per_token(experiment.model, experiment.data.seq_len)
    attention = causal - counts.flops_per_token(experiment.model, 0)
    return " | ".join(f"{tokens_per_second * flops / device.peak_flops:.1%}" for flops in (causal, causal + attention))


if __name__ == "__main__":
    main(sys.argv[1:])
