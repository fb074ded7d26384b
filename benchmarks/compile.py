"""Does compilation grow with depth? Aim: 64 blocks take at most 1.3 times the CPU seconds of 8.

Command:  python benchmarks/compile.py
"""

import time

from paired import compare, experiment, program


def compiler(n_layers: int):
    """Compiles the train step anew at each call."""

    def compile_once():
        program(experiment(d_model=64, n_layers=n_layers)).lower(
            with_moments=False
        ).compile()

    return compile_once


if __name__ == "__main__":
    for name, clock in (("CPU", time.process_time), ("wall", time.perf_counter)):
        print(
            f"{name}, 64 blocks against 8:"
            f" {compare(compiler(64), compiler(8), rounds=5, clock=clock)}",
            flush=True,
        )
