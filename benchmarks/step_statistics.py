"""What do the statistics of every step cost?

Aim: at most 3 % of a step, fetched and written every step, TensorBoard on.

Command:  python benchmarks/step_statistics.py
"""

import tempfile

from etils import epath
from paired import Stepper, compare, experiment, program, without_statistics

from sparsecod_jax.storage.attempts import Attempt
from sparsecod_jax.storage.rundir import RunDir
from sparsecod_jax.train.writers import Writers, plain


def measure(rounds: int, **sizes) -> None:
    """Compares a step that measures, fetches and writes with one without statistics."""
    built = program(experiment(**sizes))
    measuring = Stepper(built)
    with without_statistics():
        bare = Stepper(built)
    with tempfile.TemporaryDirectory() as folder:
        writers, step = Writers(Attempt(RunDir(epath.Path(folder)), 1)), 0
        writers.begin(0)

        def measured_and_written():
            nonlocal step
            step += 1
            writers.write(
                plain({"step": step} | measuring()), tensorboard=step % 10 == 0
            )

        print(
            f"{sizes}: with against without, {compare(measured_and_written, bare, rounds)}",
            flush=True,
        )
        writers.close()


if __name__ == "__main__":
    measure(80, d_model=256, n_layers=8, seq_len=128)
    measure(40, d_model=256, n_layers=32, seq_len=128, rows=4)
