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

# What no two runs have alike.
TIMES = ("tokens_per_second", "seconds", "compile_seconds", "mfu")


def trials(usual: int) -> int:
    """How many faults of a kind are tried: so many, or SPARSECOD_FAULT_TRIALS."""
    return int(os.environ.get("SPARSECOD_FAULT_TRIALS", usual))


def dice() -> random.Random:
    """Random numbers whose seed is printed, or given as SPARSECOD_FAULT_SEED."""
    seed = int(os.environ.get("SPARSECOD_FAULT_SEED", random.randrange(10**6)))
    print(f"seed {seed}", end="; ")
    return random.Random(seed)


def start(*argv: str) -> subprocess.Popen:
    """`sparsecod` on one device, in a process group of its own.

    So what it started can be killed with it.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "sparsecod_jax", *argv],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        text=True,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
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
    """The process numbers of children, their children, and so on."""
    file = Path(f"/proc/{number}/task/{number}/children")
    try:
        children = [int(word) for word in file.read_text().split()]
    except FileNotFoundError:
        return []
    descendants = []
    for child in children:
        descendants += [child, *_descendants(child)]
    return descendants


def side_by_side(trial: Callable[[Any], None], each: Iterable[Any]) -> int:
    """Runs the trials, as many at a time as there are cores; returns how many there were."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return len(list(pool.map(trial, each)))


def run_of(workdir: Path) -> dict[str, Any]:
    """What a finished run left, down to the bits of its last checkpoint, without times."""
    final = json.loads((workdir / "final.json").read_text())
    lines = [
        json.loads(line)
        for line in (workdir / "metrics.jsonl").read_text().splitlines()
    ]
    steps = [
        int(folder.name)
        for folder in (workdir / "checkpoints").iterdir()
        if folder.name.isdigit()
    ]
    newest = workdir / "checkpoints" / str(max(steps))
    metadata = json.loads((newest / "record" / "metadata").read_text())
    sealed = json.loads(metadata["body"])
    return {
        "final": _without(final, *TIMES, "checksum"),
        "digests": sealed["digests"],
        "step": sealed["step"],
        "lines": [_without(line, *TIMES, "crc32") for line in lines],
    }


def _without(record: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in names}


def contents(folder: Path) -> dict[str, str]:
    """A digest of every file below a folder, by name."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            digests[str(path.relative_to(folder))] = digest
    return digests


def lines(workdir: epath.PathLike) -> list[dict[str, Any]]:
    """The metrics of a run without what no two runs have alike."""
    metrics = RunDir(epath.Path(workdir)).read_metrics()
    return [_without(line, "tokens_per_second") for line in metrics]
