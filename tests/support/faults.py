"""How often are faults injected, where, and what came of it?"""

import concurrent.futures
import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from etils import epath

from sparsecod_jax.storage.rundir import RunDir
from tests.support.process import ROOT

TIMES = (
    "tokens_per_second",
    "seconds",
    "compile_seconds",
    "mfu",
)  # what no two runs have alike


def trials(usual: int) -> int:
    """How many faults of a kind are tried; SPARSECOD_FAULT_TRIALS says otherwise."""
    return int(os.environ.get("SPARSECOD_FAULT_TRIALS", usual))


def dice() -> random.Random:
    """Random numbers whose seed is printed, or given as SPARSECOD_FAULT_SEED."""
    seed = int(os.environ.get("SPARSECOD_FAULT_SEED", random.randrange(10**6)))
    print(f"seed {seed}", end="; ")
    return random.Random(seed)


def start(*argv: str) -> subprocess.Popen:
    """`sparsecod` on one device, in a process group of its own, so that what it started can be killed with it."""
    surroundings = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "sparsecod_jax", *argv]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(
        command, cwd=ROOT, env=surroundings, text=True, start_new_session=True, **pipes
    )


def finish(*argv: str) -> float:
    """Runs `sparsecod` to its end, which must be a good one; returns the seconds that took."""
    began = time.monotonic()
    process = start(*argv)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, f"exit code {process.returncode}:\n{output}"
    return time.monotonic() - began


def kill(process: subprocess.Popen) -> None:
    """kill -9, also of what the process has started, even in sessions of their own."""
    family = [process.pid, *_descendants(process.pid)]
    for number in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    process.communicate()


def _descendants(number: int) -> list[int]:
    try:
        children = [
            int(word)
            for word in Path(f"/proc/{number}/task/{number}/children")
            .read_text()
            .split()
        ]
    except FileNotFoundError:
        return []
    return [each for child in children for each in (child, *_descendants(child))]


def side_by_side(trial: Callable[[Any], None], each: Iterable[Any]) -> int:
    """Runs the trials, as many at a time as there are cores; returns how many there were."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return len(list(pool.map(trial, each)))


def run_of(workdir: Path) -> dict[str, Any]:
    """What a finished run has found, down to the bits of its last checkpoint, without times."""
    lines = [
        json.loads(line)
        for line in (workdir / "metrics.jsonl").read_text().splitlines()
    ]
    final = json.loads((workdir / "final.json").read_text())
    newest = max(
        (step for step in (workdir / "checkpoints").iterdir() if step.name.isdigit()),
        key=lambda step: int(step.name),
    )
    sealed = json.loads(
        json.loads((newest / "record" / "metadata").read_text())["body"]
    )
    found = {"final": final, "digests": sealed["digests"], "step": sealed["step"]}
    found["lines"] = [
        {name: value for name, value in line.items() if name not in (*TIMES, "crc32")}
        for line in lines
    ]
    found["final"] = {
        name: value for name, value in final.items() if name not in (*TIMES, "checksum")
    }
    return found


def contents(folder: Path) -> dict[str, str]:
    """A digest of every file below a folder, by name."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
    }


def lines(workdir: epath.PathLike) -> list[dict[str, Any]]:
    """The metrics of a run without what no two runs have alike."""
    found = RunDir(epath.Path(workdir)).read_metrics()
    return [
        {name: value for name, value in line.items() if name != "tokens_per_second"}
        for line in found
    ]
