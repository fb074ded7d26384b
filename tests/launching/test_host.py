"""A host runs the commands of a run, and ends as they end.

The first command runs everywhere, the others on the first host.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sparsecod_jax.errors import ConfigError
from sparsecod_jax.launching import host

ROOT = Path(host.__file__).parents[2]


def python(code, *words):
    return (sys.executable, "-c", code, *words)


def start(commands, *, several_tpu_hosts=False, **environment):
    words = host.argv(commands, several_tpu_hosts=several_tpu_hosts)
    command = [sys.executable, *words[1:]]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def run(commands, **options):
    process = start(commands, **options)
    output, _ = process.communicate()
    return process.returncode, output.split()


def printing(word):
    return python(f"print({word!r})")


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ({}, ["train", "analyze"]),
        ({"SPARSECOD_SLICE": "0", "SPARSECOD_HOST": "0"}, ["train", "analyze"]),
        ({"SPARSECOD_SLICE": "0", "SPARSECOD_HOST": "1"}, ["train"]),
        ({"SPARSECOD_SLICE": "1", "SPARSECOD_HOST": "0"}, ["train"]),
    ],
)
def test_only_the_first_host_runs_more_than_the_first_command(numbers, expected):
    assert run([printing("train"), printing("analyze")], **numbers) == (0, expected)


@pytest.mark.parametrize("code", [1, 2, 70, 75, 76, 78])
def test_the_exit_code_is_that_of_the_command_that_failed_and_ends_the_run(code):
    failing = python(f"raise SystemExit({code})")
    assert run([failing, printing("analyze")]) == (code, [])
    assert run([printing("train"), failing]) == (code, ["train"])


def test_a_command_that_is_killed_counts_as_128_and_the_signal():
    assert run([python("import os; os.kill(os.getpid(), 9)")]) == (137, [])


SLEEPS = "import signal, sys, time; {}; print('ready', flush=True); time.sleep(60)"


@pytest.mark.parametrize(
    ("handler", "code"),
    [
        ("signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))", 75),
        ("signal.signal(signal.SIGTERM, lambda *_: sys.exit(70))", 70),
        ("signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))", 0),
        ("0", 75),  # saved nothing new, but was told to go: no failure of its own
    ],
)
def test_a_host_that_is_taken_away_tells_its_command_and_asks_to_be_run_again(
    handler, code
):
    process = start([python(SLEEPS.format(handler))])
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == code
    assert time.monotonic() - began < 20


def test_nothing_tells_the_command_of_one_host_that_there_are_others():
    among = dict.fromkeys(host.OF_SEVERAL, "7")
    shows = python("import json, os; print(json.dumps(dict(os.environ)))")
    output, _ = start([shows, shows], several_tpu_hosts=True, **among).communicate()
    before, after = map(json.loads, output.splitlines())
    assert among.items() <= before.items()
    assert not set(among) & set(after)
    assert after["TPU_PROCESS_BOUNDS"] == "1,1,1"
    assert after["TPU_CHIPS_PER_PROCESS_BOUNDS"] == "2,2,1"
    assert "TPU_PROCESS_BOUNDS" not in before


def test_a_host_alone_uses_all_its_chips():
    words = host.argv([("a",), ("b",)], several_tpu_hosts=False)
    assert not any(word.startswith("TPU_") for word in words)


def test_the_word_between_commands_is_no_value():
    with pytest.raises(ConfigError, match="the word --then, which separates commands"):
        host.argv([("train", "--then")], several_tpu_hosts=False)
