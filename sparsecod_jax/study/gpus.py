"""Which of this machine's NVIDIA GPUs does each of several runs get?

GPU assignment: without one, every run would take all of them.
"""

import os
import shutil
import subprocess

from sparsecod_jax.parallel.devices import gpu_share

VISIBLE = "CUDA_VISIBLE_DEVICES"
# Share of a GPU for the runs on it together, unless the environment gives another.
MEMORY_SHARE = 0.9


def environments(jobs: int) -> list[dict[str, str]]:
    """What the environment of each of `jobs` runs at a time adds to this process's.

    The GPUs are divided equally. Where there are fewer GPUs than runs, each run gets one,
    and an equal share of its memory. Nothing is added for one run, or without GPUs.

    Raises:
      ConfigError: a variable that sets how much memory jax takes is no number.
    """
    gpus = _gpus() if jobs > 1 else []
    if not gpus:
        return [{}] * jobs
    per_run = len(gpus) // jobs
    if per_run:
        starts = [job * per_run for job in range(jobs)]
        return [{VISIBLE: ",".join(gpus[at : at + per_run])} for at in starts]
    variable, memory = gpu_share(MEMORY_SHARE)
    runs_per_gpu = -(-jobs // len(gpus))  # rounded up
    share = f"{memory / runs_per_gpu:.3f}"
    return [{VISIBLE: gpus[job % len(gpus)], variable: share} for job in range(jobs)]


def _gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if VISIBLE in os.environ:
        names = [name.strip() for name in os.environ[VISIBLE].split(",")]
        return [name for name in names if name]
    if shutil.which("nvidia-smi") is None:
        return []
    listing = subprocess.run(
        ["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False
    )
    if listing.returncode:
        return []
    # The other lines are parts of a GPU that is divided.
    lines = [line for line in listing.stdout.splitlines() if line.startswith("GPU ")]
    return [str(number) for number in range(len(lines))]
