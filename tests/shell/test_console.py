"""A reader who stops reading, or leaves, neither holds up nor ends a program.

One who is slow gets everything.
"""

import json
import os
import signal
import subprocess
import sys
import time

from etils import epath

from sparsecod_jax import config
from sparsecod_jax.shell.console import LINES
from sparsecod_jax.storage.rundir import RunDir
from tests.support import process, tiny_configs

PROGRAM = """
import sys, time
from sparsecod_jax.shell.console import use_nonblocking_output
use_nonblocking_output()
began = time.monotonic()
for number in range({lines}):
    print(number, "x" * 100)
print("an error", file=sys.stderr)
print(time.monotonic() - began, file=open(sys.argv[1], "w"))
"""


def _start(took, lines: int, **streams) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(process.ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(lines=lines), took],
        env=environment,
        text=True,
        **streams,
    )


def test_everything_arrives_in_order(tmp_path):
    running = _start(
        tmp_path / "took", 500, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    output, errors = running.communicate()
    assert running.returncode == 0
    numbers = [int(line.split()[0]) for line in output.splitlines()]
    assert numbers == list(range(500))
    assert errors == "an error\n"


def test_nobody_reads(tmp_path):
    """Far more than a pipe and the queue hold."""
    running = _start(tmp_path / "took", 20 * LINES, stdout=subprocess.PIPE)
    assert running.wait(timeout=60) == 0
    assert float((tmp_path / "took").read_text()) < 20
    assert running.stdout
    output = running.stdout.read()
    assert output.startswith("0 xxx")
    assert output.count("\n") < 20 * LINES


def test_the_reader_has_left(tmp_path):
    read, write = os.pipe()
    running = _start(
        tmp_path / "took", 20 * LINES, stdout=write, stderr=subprocess.PIPE
    )
    os.close(write)
    os.close(read)
    _, errors = running.communicate()
    assert (running.returncode, errors) == (0, "an error\n")


def test_a_full_disk_takes_a_log_and_not_the_program(tmp_path):
    with open("/dev/full", "wb") as full:
        running = _start(tmp_path / "took", 100, stdout=full, stderr=full)
        assert running.wait() == 0


SHORT_OF_ROOM = """
import os, sys, time
from sparsecod_jax.shell.console import use_nonblocking_output
use_nonblocking_output()
print("first", flush=True)
time.sleep(0.5)
full = os.open("/dev/full", os.O_WRONLY)
file = os.dup(1)
os.dup2(full, 1)
print("second", flush=True)
time.sleep(0.5)
os.dup2(file, 1)
print("third", flush=True)
"""


def test_a_disk_that_is_full_for_a_while_takes_only_what_is_printed_then(tmp_path):
    with open(tmp_path / "log", "wb") as log:
        environment = os.environ | {"PYTHONPATH": str(process.ROOT)}
        subprocess.run(
            [sys.executable, "-c", SHORT_OF_ROOM],
            env=environment,
            stdout=log,
            check=True,
        )
    assert (tmp_path / "log").read_text() == (
        "first\nthird\n[1 lines were not printed, as there was no room for them]\n"
    )


def test_a_pipe_that_does_not_wait_loses_nothing(tmp_path):
    read, write = os.pipe()
    os.set_blocking(write, False)
    running = _start(tmp_path / "took", 5000, stdout=write)
    os.close(write)
    time.sleep(1)  # the pipe is full
    with open(read) as reader:
        numbers = [int(line.split()[0]) for line in reader]
    assert numbers == list(range(5000))
    assert running.wait() == 0


def test_training_continues_without_a_reader_and_heeds_sigterm_when_its_pipe_is_full(
    tokens, tmp_path
):
    experiment = tiny_configs.experiment(
        steps=10**5,
        data={"path": str(tokens)},
        mesh=config.Mesh(1, 1, 1, 1),
        checkpoint={"every": 10**6},
        log={"every": 1, "moments_every": 0},
    )
    read, write = os.pipe()
    full = process.start(
        experiment, tmp_path / "full", streams={"stdout": write, "stderr": write}
    )
    os.set_blocking(write, False)
    try:
        while True:
            os.write(write, bytes(4096))
    except BlockingIOError:
        os.set_blocking(write, True)  # the children share it
    left = process.start(experiment, tmp_path / "left")
    process.wait_until_it_says(left, "step 1/")
    assert left.stdout
    left.stdout.close()
    for running, place in ((full, tmp_path / "full"), (left, tmp_path / "left")):
        process.signal_at_line(running, place / "metrics.jsonl", 20, signal.SIGTERM)
        assert running.wait(timeout=60) == 75
        run = RunDir(epath.Path(place))
        assert json.loads(run.status.read_text())["status"] == "preempted"
        assert run.newest_checkpoint() == len(run.read_metrics())
    os.close(read)
    os.close(write)
