"""Which of this machine's NVIDIA GPUs does each of several runs get? Left alone, every run would take all of them."""

import os
import shutil
import subprocess

VISIBLE = "CUDA_VISIBLE_DEVICES"
ALLOCATOR = ("XLA_CLIENT_", "XLA_PYTHON_CLIENT_")  # how its variables begin
MEMORY = 0.9  # of a GPU, for the runs that share it


def places(jobs: int) -> list[dict[str, str]]:
    """What the environment of each of `jobs` runs at a time adds to this process's.

    Each gets as many GPUs of its own as there are for all. Where there are fewer GPUs than runs, each gets one, and an equal share of its
    memory unless a variable of JAX's allocator says otherwise. Nothing is added for one run, or without GPUs.
    """
    gpus = _gpus()
    if jobs == 1 or not gpus:
        return [{}] * jobs
    if each := len(gpus) // jobs:
        return [{VISIBLE: ",".join(gpus[place * each : (place + 1) * each])} for place in range(jobs)]
    is_told = any(name.startswith(ALLOCATOR) for name in os.environ)
    share = MEMORY / -(-jobs // len(gpus))
    memory = {} if is_told else {"XLA_CLIENT_MEM_FRACTION": f"{share:.3f}"}
    return [{VISIBLE: gpus[place % len(gpus)], **memory} for place in range(jobs)]


def _gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if VISIBLE in os.environ:
        return [name.strip() for name in os.environ[VISIBLE].split(",") if name.strip()]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False)
    return [str(number) for number, _ in enumerate(listed.stdout.splitlines())] if listed.returncode == 0 else []
