"""Does compilation grow with depth? Aim: 64 blocks take at most 1.3 times the CPU seconds of 8.

Command:  python benchmarks/compile.py
"""

import time

from paired import experiment, program, ratio


def compiler(n_layers: int):
    """Compiles the train step anew at each call."""

    def compile_once():
        program(experiment(d_model=64, n_layers=n_layers)).lower(with_moments=False).compile()

    return compile_once


if __name__ == "__main__":
    for name, clock in (("CPU", time.process_time), ("wall", time.perf_counter)):
        growth, deep, shallow = ratio(compiler(64), compiler(8), rounds=5, clock=clock)
        print(f"{name} seconds: 64 blocks {deep:.2f}, 8 blocks {shallow:.2f}, ratio {growth:.3f} (median of 5 pairs)", flush=True)
