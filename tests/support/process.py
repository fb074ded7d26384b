"""The command line in real processes."""

import concurrent.futures
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from etils import epath

from tests.support import tiny_configs

ROOT = Path(__file__).resolve().parents[2]

for number in (signal.SIGINT, signal.SIGHUP):
    if (
        signal.getsignal(number) is signal.SIG_IGN
    ):  # as a shell has it for what runs in the background; children would inherit it
        signal.signal(number, signal.SIG_DFL)


def start(
    experiment,
    workdir,
    *,
    devices=1,
    flags=(),
    environment=None,
    program=("-m", "sparsecod_jax"),
    streams=None,
) -> subprocess.Popen:
    """`sparsecod train` of `experiment` in a process of its own, on that many CPU devices."""
    command = [
        sys.executable,
        *program,
        "train",
        "--config=configs/smoke.py",
        f"--workdir={workdir}",
        *tiny_configs.flags(experiment),
        *flags,
    ]
    xla_flags = (
        f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    )
    surroundings = (
        os.environ
        | {"XLA_FLAGS": xla_flags, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        | (environment or {})
    )
    outputs: dict[str, Any] = {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
        **(streams or {}),
    }
    return subprocess.Popen(command, cwd=ROOT, env=surroundings, text=True, **outputs)


def start_several(
    experiments, workdir, count: int, *, programs=None, **options
) -> list[subprocess.Popen]:
    """`sparsecod train` in `count` processes that work together.

    Args:
      experiments: one for all, or a list with one for each.
    """
    flags = [f"--coordinator=127.0.0.1:{free_port()}", f"--process_count={count}"]
    if not isinstance(experiments, list):
        experiments = [experiments] * count
    programs = programs or [("-m", "sparsecod_jax")] * count
    return [
        start(
            experiment,
            workdir,
            flags=[*flags, f"--process_index={index}"],
            program=program,
            **options,
        )
        for index, (experiment, program) in enumerate(
            zip(experiments, programs, strict=True)
        )
    ]


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def finish(process: subprocess.Popen, code: int = 0) -> str:
    """Waits for the process, checks its exit code and returns what it printed."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == code, (
        f"exit code {process.returncode}, not {code}:\n{output}"
    )
    return output


def finish_all(processes: list[subprocess.Popen], code: int = 0) -> list[str]:
    """`finish` for processes that work together."""
    with concurrent.futures.ThreadPoolExecutor(
        len(processes)
    ) as pool:  # so that none waits for room in its pipe
        return list(pool.map(lambda process: finish(process, code), processes))


def wait_until_it_says(process: subprocess.Popen, words: str) -> str:
    """Returns what the process has printed once that has these words in it."""
    assert process.stdout
    said = ""
    for line in process.stdout:
        said += line
        if words in line:
            return said
    raise AssertionError(f"ended without {words!r}:\n{said}")


def wait_for_line(
    process: subprocess.Popen, metrics: Path | epath.Path, lines: int
) -> None:
    """Returns once `metrics` has that many lines."""
    deadline = time.time() + 240
    while not metrics.exists() or metrics.read_text().count("\n") < lines:
        assert process.poll() is None, (
            f"ended too early:\n{process.stdout.read() if process.stdout else ''}"
        )
        assert time.time() < deadline, "no progress"
        time.sleep(0.005)


def signal_at_line(
    process: subprocess.Popen,
    metrics: Path | epath.Path,
    lines: int,
    number: signal.Signals,
) -> None:
    """Signals the process once `metrics` has that many lines."""
    wait_for_line(process, metrics, lines)
    process.send_signal(number)
