"""The command line in real processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import tiny

ROOT = Path(__file__).resolve().parents[2]


def start(experiment, workdir, *, devices=1) -> subprocess.Popen:
    """`sparsecod train` of `experiment` in a process of its own."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    command = [sys.executable, "-m", "sparsecod_jax", "train", "--config=configs/smoke.py", f"--workdir={workdir}", *tiny.flags(experiment)]
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen, code: int = 0) -> str:
    """Waits for the process, checks its exit code and returns what it printed."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == code, f"exit code {process.returncode}, not {code}:\n{output}"
    return output


def signal_at_line(process: subprocess.Popen, metrics: Path, lines: int, number: signal.Signals) -> None:
    """Signals the process once `metrics` has that many lines."""
    deadline = time.time() + 240
    while not metrics.exists() or metrics.read_text().count("\n") < lines:
        assert process.poll() is None, f"ended too early:\n{process.stdout.read() if process.stdout else ''}"
        assert time.time() < deadline, "no progress"
        time.sleep(0.005)
    process.send_signal(number)
