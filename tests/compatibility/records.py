"""What do the runs of an earlier commit hold that today's must equal? Baselines: files and numbers.

`make_baselines` writes a folder per commit below DATA, `test_earlier_commits` reads them.
"""

import hashlib
import importlib.metadata
import json
import os
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data"

# Of both sides, whatever flags a commit adds by itself. Compiled code without optimizations depends
# less on the CPU, and is there sooner.
XLA_FLAGS = (
    "--xla_cpu_experimental_ynn_fusion_type=individual_dot,individual_convolution"
    " --xla_backend_optimization_level=0"
    " --xla_force_host_platform_device_count=1"
)
PREPARE = (
    "data",
    "--source=corpus",
    "--out=data",
    "--vocab_size=280",
    "--validation_fraction=0.2",
)
SCORE = ("analyze", "--sequences=2", "--seq_len=24")
MODELS = ("dense", "moe")
STEPS = 8

# Fields of metrics.jsonl and final.json that differ from one execution to the next.
TIMES = ("tokens_per_second", "seconds", "compile_seconds", "mfu")
CHECKSUMS = ("crc32", "checksum")


def environment(checkout: Path, caches: Path) -> dict[str, str]:
    """The surroundings of a process that runs the code of a checkout."""
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.fspath(checkout),
        "XDG_CACHE_HOME": os.fspath(caches),
        "XLA_FLAGS": XLA_FLAGS,
    }


def train(model: str, workdir: str) -> list[str]:
    """The words that train a model alone, also in a process that has used jax before."""
    config, directory = f"--config=tiny.py:{model}", f"--workdir={workdir}"
    return ["train", config, directory, "--process_count=1"]


def machine() -> dict[str, str]:
    """What decides the last bits of results on CPUs: the compiler and a digest of the CPU."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    names = ("model name", "flags", "Features", "CPU implementer", "CPU part")
    decisive = [line for line in cpuinfo if line.startswith(names)]
    return {
        "jaxlib": importlib.metadata.version("jaxlib"),
        "cpu": hashlib.sha256("\n".join(decisive).encode()).hexdigest()[:16],
    }


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without times and checksums."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [without_times(json.loads(line)) for line in lines]


def without_times(values: dict[str, Any]) -> dict[str, Any]:
    """The fields that are the same whenever and wherever a run is executed."""
    left_out = {*TIMES, *CHECKSUMS}
    return {name: value for name, value in values.items() if name not in left_out}


def read_digests(run: Path, step: int) -> dict[str, list[int]]:
    """The digest of each array in the checkpoint of a step, by name."""
    stored = run / "checkpoints" / str(step) / "record" / "metadata"
    body = json.loads(json.loads(stored.read_text())["body"])
    return body["digests"]
