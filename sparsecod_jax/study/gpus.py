"""Which of this machine's NVIDIA GPUs does each of several runs get? Left alone, every run would take all of them."""

import os
import shutil
import subprocess

from sparsecod_jax.parallel.devices import gpu_share

VISIBLE = "CUDA_VISIBLE_DEVICES"
MEMORY = 0.9  # of a GPU, for the runs that share it, unless jax was told otherwise


def environments(jobs: int) -> list[dict[str, str]]:
    """What the environment of each of `jobs` runs at a time adds to this process's.

    Each gets as many GPUs of its own as there are for all. Where there are fewer GPUs than runs, each gets one and an equal share of its
    memory. Nothing is added for one run, or without GPUs.

    Raises:
      ConfigError: a variable that says how much memory jax takes is no number.
    """
    gpus = _gpus() if jobs > 1 else []
    if not gpus:
        return [{}] * jobs
    if each := len(gpus) // jobs:
        return [
            {VISIBLE: ",".join(gpus[place * each : (place + 1) * each])}
            for place in range(jobs)
        ]
    name, memory = gpu_share(MEMORY)
    share = memory / -(-jobs // len(gpus))
    return [
        {VISIBLE: gpus[place % len(gpus)], name: f"{share:.3f}"}
        for place in range(jobs)
    ]


def _gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if VISIBLE in os.environ:
        return [name.strip() for name in os.environ[VISIBLE].split(",") if name.strip()]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(
        ["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False
    )
    lines = listed.stdout.splitlines() if listed.returncode == 0 else []
    return [
        str(number) for number in range(sum(line.startswith("GPU ") for line in lines))
    ]  # other lines are parts of a divided one
