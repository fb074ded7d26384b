"""The budgets of a watchdog, in processes of their own, as it ends them."""

import os
import subprocess
import sys
import time

import pytest

from sparsecod_jax.errors import STUCK, ConfigError
from sparsecod_jax.train.watchdog import PATIENCE, Watchdog
from tests.support import process

PROGRAM = """
import time
from sparsecod_jax.train.watchdog import Watchdog
with Watchdog() as watchdog:
    {}
print("went well")
"""


def _run(body: str, patience: str = "1") -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", PROGRAM.format("\n    ".join(body.splitlines()))]
    environment = os.environ | {PATIENCE: patience, "PYTHONPATH": str(process.ROOT)}
    return subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_what_moves_continues_and_what_does_not_is_ended_with_its_stacks():
    moving = _run("""with watchdog.during("training"):
    for _ in range(8):
        time.sleep(0.5)
        watchdog.step(0.001)""")
    assert (moving.returncode, moving.stdout) == (0, "went well\n")
    stuck = _run("""with watchdog.during("training"):
    watchdog.step(0.001)
    time.sleep(60)""")
    assert stuck.returncode == STUCK
    sentence = "stuck while training: nothing happened for 1 s"
    assert f"{sentence}; run the same command to resume" in stuck.stderr
    assert 'File "<string>", line 7' in stuck.stderr


def test_a_step_may_take_ten_times_the_median_and_a_save_twelve_times_the_patience():
    slow = _run("""with watchdog.during("training"):
    watchdog.step(0.6)
    time.sleep(3)
with watchdog.during("saving"):
    time.sleep(3)""")
    assert slow.returncode == 0, slow.stderr


def test_the_first_step_may_take_as_long_as_compiling():
    slow = _run("""with watchdog.during("training"):
    time.sleep(3)
    watchdog.step(0.001)""")
    assert slow.returncode == 0, slow.stderr


FAILING = """from sparsecod_jax.train import watchdog as module
from sparsecod_jax.errors import ConfigError, SaveFailed
module.CLOSING = 0.5
try:
    with watchdog.prompt_end():
        raise {}('mend it')
finally:
    time.sleep({})"""


@pytest.mark.parametrize("error", ["SaveFailed", "OSError"])
def test_after_a_failed_save_the_end_comes_soon_and_with_its_own_code(error):
    ended = _run(FAILING.format(error, 60), patience="5")
    assert ended.returncode == 1
    assert f"{error}: mend it" in ended.stderr
    assert "a library kept the process from closing its files" in ended.stderr


def test_after_other_errors_a_save_may_be_finished():
    ended = _run(FAILING.format("ConfigError", 3))
    assert "ConfigError: mend it" in ended.stderr
    assert "a library kept" not in ended.stderr
    stuck = _run(FAILING.format("ConfigError", 60), patience="0.2")
    assert stuck.returncode == ConfigError.exit_code
    assert "a library kept the process from closing its files" in stuck.stderr


@pytest.mark.parametrize("text", ["soon", "0", "-3", "nan", "inf"])
def test_a_patience_that_is_no_time_is_refused(monkeypatch, text):
    monkeypatch.setenv(PATIENCE, text)
    sentence = f"{PATIENCE}={text} is not a number of seconds above 0"
    with pytest.raises(ConfigError, match=sentence):
        Watchdog()


def test_a_step_costs_microseconds():
    with Watchdog() as watchdog:
        began = time.perf_counter()
        for _ in range(10_000):
            with watchdog.during("reading data"):
                pass
            watchdog.step(0.001)
        each = (time.perf_counter() - began) / 10_000
    print(f"a step costs {1e6 * each:.1f} us")
    assert each < 1e-4
