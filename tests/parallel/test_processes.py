"""How a process finds its place among others, and what two real ones decide together."""

import json
import os
import subprocess
import sys
import time

import pytest

from sparsecod_jax.parallel.processes import ADVICE
from tests.support import process

PROGRAM = """
import json, os, sys
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.parallel.processes import connected

for environment, given in json.loads(sys.argv[1]):
    os.environ.update(environment)
    try:
        with connected(*given):
            print("alone")
    except ConfigError as error:
        print(error)
    for name in environment:
        del os.environ[name]
"""
# In the batch script, outside srun.
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
}


def _outcomes(*cases) -> list[str]:
    """What becomes of a process in each environment with each (coordinator, count, index).

    Nothing else is printed.
    """
    command = [sys.executable, "-c", PROGRAM, json.dumps(cases)]
    done = subprocess.run(
        command,
        cwd=process.ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_a_laptop_trains_alone_and_half_given_addresses_are_refused():
    """Otherwise each of several processes would train a copy."""
    nothing = [None, None, None]
    alone, batch_script, forced, indexed_pod, mpi, address_only, partly, beyond = (
        _outcomes(
            ({}, nothing),
            (SLURM, nothing),
            (SLURM, [None, 1, None]),
            ({"JOB_COMPLETION_INDEX": "0"}, nothing),
            ({"PMI_SIZE": "2"}, nothing),
            ({"JAX_COORDINATOR_ADDRESS": "127.0.0.1:1"}, nothing),
            ({}, ["127.0.0.1:1", 2, None]),
            ({}, ["127.0.0.1:1", 2, 2]),
        )
    )
    assert alone == forced == "alone"
    for sentence, sign in (
        (batch_script, "SLURM_NTASKS=4"),
        (indexed_pod, "JOB_COMPLETION_INDEX=0"),
        (mpi, "PMI_SIZE=2"),
    ):
        assert sentence.startswith(
            f"{sign} says that this is one of several processes, and JAX can't tell which: "
        )
        assert sentence.endswith(ADVICE)
    assert address_only == (
        "JAX can't join the other processes (Number of processes must be defined.):"
        f" {ADVICE}"
    )
    assert partly == (
        f"--coordinator, --process_count and --process_index belong together: {ADVICE}"
    )
    assert "process_id < num_processes" in beyond


@pytest.fixture(scope="module")
def two():
    """Two processes with two devices each: what they printed, and their exit codes.

    Also the seconds from the lone failure to the end of both.
    """
    address = f"127.0.0.1:{process.free_port()}"
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(process.ROOT)}
    pair = [
        subprocess.Popen(
            [sys.executable, "tests/support/deciding.py", address, str(index)],
            cwd=process.ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    began = time.time()
    outputs = [member.communicate(timeout=300) for member in pair]
    codes, seconds = [member.returncode for member in pair], time.time() - began
    assert "process 1: process 1 alone: mend it\n" in outputs[1][1]
    return [output.splitlines() for output, _ in outputs], codes, seconds


def test_what_runs_on_the_first_counts_for_both(two):
    (first, second), _, _ = two
    assert first[0] == "said once"
    assert first[1].endswith("] noted once")
    assert not [line for line in second if "once" in line]
    zero, one = (json.loads(lines[-1]) for lines in (first, second))
    assert (zero["first"], one["first"]) == (True, False)
    assert zero["decided"] == one["decided"] == {"who": 0, "text": "ü" * 3000}
    assert zero["nothing"] is one["nothing"] is None
    assert zero["fenced"] == one["fenced"] == ["Fenced", "said by 0"]
    expected = ["SparsecodError", "process 0 failed (OSError: disk 0 is full)"]
    assert zero["surprised"] == one["surprised"] == expected


def test_what_runs_on_all_succeeds_on_all_or_fails_on_all(two):
    zero, one = (json.loads(lines[-1]) for lines in two[0])
    assert (zero["own"], one["own"]) == ("of 0", "of 1")
    assert zero["one failed"] == one["one failed"] == ["Fenced", "said by 1"]
    assert zero["both failed"] == one["both failed"] == ["Fenced", "said by 0"]


def test_a_process_reads_the_rows_that_its_devices_hold(two):
    """Of 8 rows, on two devices a process: also where partners share rows, or need all of them."""
    zero, one = (json.loads(lines[-1]) for lines in two[0])
    assert (zero["data 4"], one["data 4"]) == ([0, 1, 2, 3], [4, 5, 6, 7])
    assert (zero["expert 2, tensor 2"], one["expert 2, tensor 2"]) == (
        [0, 1, 2, 3],
        [4, 5, 6, 7],
    )
    assert zero["tensor 4"] == one["tensor 4"] == list(range(8))


def test_one_that_fails_alone_takes_the_other_with_it(two):
    """At once: JAX's own way out would have them wait five minutes for each other."""
    _, codes, seconds = two
    assert codes[1] == 78
    assert codes[0] != 0
    assert seconds < 60
