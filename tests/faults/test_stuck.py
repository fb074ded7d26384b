"""A stuck step, a stuck peer and a clock that jumps.

The watchdog ends the run within its limit; it is resumed bit for bit.
"""

import json
import os
import signal
import time

import pytest
from etils import epath

from sparsecod_jax import config
from sparsecod_jax.errors import STUCK
from sparsecod_jax.storage.rundir import RunDir
from sparsecod_jax.train.watchdog import BUDGETS, GRACE, PATIENCE, TICKS
from tests.support import faults, process, tiny_configs

pytestmark = pytest.mark.faults

SECONDS = 20.0  # the patience of these runs; other tests share the machine
STEPS = 40


def _experiment(tokens, devices=1, **sections):
    defaults = {
        "steps": STEPS,
        "data": {"path": str(tokens)},
        "mesh": config.Mesh(1, devices, 1, 1),
        "checkpoint": {"every": 5},
    }
    return tiny_configs.experiment(**{**defaults, **sections})


def _limit(activity: str) -> float:
    """Seconds within which the watchdog ends a process that is stuck in an activity."""
    return BUDGETS[activity] * SECONDS * (1 + 4 / TICKS) + 2 * GRACE


def _impatient(**environment) -> dict[str, str]:
    return {PATIENCE: str(SECONDS), **environment}


@pytest.mark.parametrize(
    ("where", "when", "doing"),
    [("read", "150", "reading data"), ("save", "15", "saving")],
)
def test_a_stuck_process_is_ended_and_resumed_bit_for_bit(
    tokens, tmp_path, where, when, doing
):
    process.finish(process.start(_experiment(tokens), tmp_path / "whole"))
    workdir = tmp_path / "stuck"
    limit = _limit(doing)
    environment = _impatient()
    if where == "save":
        # A patience of one second, as a save may take twelve times as long.
        limit /= SECONDS
        environment = {PATIENCE: "1"}
    victim = process.start(
        _experiment(tokens),
        workdir,
        program=("tests/support/stuck.py", where, when),
        environment=environment,
    )
    output = process.finish(victim, code=STUCK)
    assert f"stuck while {doing}: nothing happened for" in output
    assert "_for_ever" in output  # the function that does not return
    run = RunDir(epath.Path(workdir))
    status = json.loads(run.status.read_text())
    assert status["status"] == "failed"
    assert status["reason"].split(":")[0] == f"stuck while {doing}"
    waited = float(status["reason"].rsplit(" ", 2)[1])
    print(f"\nstuck while {doing}: ended after {waited:.0f} s of at most {limit:.0f}")
    assert waited <= limit
    assert "_for_ever" in (workdir / "stuck-0.txt").read_text()
    process.finish(process.start(_experiment(tokens), workdir))
    assert faults.lines(workdir) == faults.lines(tmp_path / "whole")


def test_one_that_is_stuck_before_it_begins_leaves_nothing_behind(tokens, tmp_path):
    program = ("tests/support/stuck.py", "compile", "0")
    victim = process.start(
        _experiment(tokens),
        tmp_path / "run",
        program=program,
        environment={PATIENCE: "0.5"},
    )
    assert "stuck while compiling" in process.finish(victim, code=STUCK)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("stopped", [0, 1])
def test_those_who_wait_for_a_stuck_peer_leave_within_the_limit(
    tokens, tmp_path, stopped
):
    """The peer is stopped; in the next test it is alive, but its reads never return."""
    endless = {
        "devices": 2,
        "steps": 10**5,
        "schedule": {"kind": "constant"},
        "checkpoint": {"every": 50, "keep": 2},
    }
    experiment = _experiment(tokens, **endless)
    short = _experiment(tokens, **{**endless, "steps": 60})
    process.finish_all(process.start_several(short, tmp_path / "whole", 2))
    workdir = tmp_path / "pair"
    pair = process.start_several(experiment, workdir, 2, environment=_impatient())
    process.wait_for_line(pair[0], workdir / "metrics.jsonl", 55)
    pair[stopped].send_signal(signal.SIGSTOP)
    began = time.monotonic()
    assert "nothing happened for" in process.finish(pair[1 - stopped], code=STUCK)
    seconds = time.monotonic() - began
    limit = _limit("training")
    print(
        f"\nwaited for process {stopped}, which was stopped: ended after"
        f" {seconds:.0f} s of at most {limit:.0f}"
    )
    assert seconds < limit
    pair[stopped].kill()
    pair[stopped].wait()
    status = json.loads((workdir / "status.json").read_text())
    assert status["reason"].startswith("stuck while ")
    again = process.start_several(experiment, workdir, 2)
    process.wait_until_it_says(again[0], "restored step ")
    process.wait_for_line(again[0], workdir / "metrics.jsonl", 61)
    again[0].send_signal(signal.SIGTERM)
    process.finish_all(again, code=75)
    assert faults.lines(workdir)[:60] == faults.lines(tmp_path / "whole")


def test_a_peer_that_is_alive_but_stuck_ends_both(tokens, tmp_path):
    experiment = _experiment(tokens, devices=2, steps=10**5)
    programs = [("-m", "sparsecod_jax"), ("tests/support/stuck.py", "read", "150")]
    pair = process.start_several(
        experiment, tmp_path, 2, programs=programs, environment=_impatient()
    )
    codes = [member.wait(timeout=300) for member in pair]
    assert codes[1] == STUCK
    # JAX may end the one that loses its peer a moment earlier.
    assert codes[0] in (STUCK, -signal.SIGABRT)


def test_a_pause_does_not_end_a_run(tokens, tmp_path):
    """It is stopped for longer than the patience, as on a laptop that sleeps."""
    process.finish(process.start(_experiment(tokens, steps=400), tmp_path / "whole"))
    run = process.start(
        _experiment(tokens, steps=400), tmp_path / "paused", environment={PATIENCE: "8"}
    )
    for lines in (5, 100):
        process.wait_for_line(run, tmp_path / "paused" / "metrics.jsonl", lines)
        run.send_signal(signal.SIGSTOP)
        time.sleep(12)
        run.send_signal(signal.SIGCONT)
    process.finish(run)
    assert faults.lines(tmp_path / "paused") == faults.lines(tmp_path / "whole")


JUMPING_CLOCK = """
import itertools, time
real, calls = time.time, itertools.count()
time.time = lambda: real() + 86400 * (3, -2, 5)[next(calls) // {calls} % 3]
"""


def _with_a_jumping_clock(folder, calls: int) -> dict[str, str]:
    """An environment whose wall clock jumps by days, forward and back.

    Args:
      calls: readings between two jumps.
    """
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(JUMPING_CLOCK.format(calls=calls))
    path = os.pathsep.join((str(folder), str(process.ROOT)))
    return {PATIENCE: "8", "PYTHONPATH": path}


def test_a_clock_that_jumps_does_not_end_a_run(tokens, tmp_path):
    """It jumps every 400 readings; the only save is at the end."""
    experiment = _experiment(tokens, steps=400, checkpoint={"every": 10**6})
    process.finish(process.start(experiment, tmp_path / "whole"))
    environment = _with_a_jumping_clock(tmp_path / "clock", 400)
    process.finish(process.start(experiment, tmp_path / "run", environment=environment))
    assert faults.lines(tmp_path / "run") == faults.lines(tmp_path / "whole")


def test_a_clock_that_jumps_inside_a_save_costs_no_more_than_that_save(
    tokens, tmp_path
):
    """It jumps at every reading."""
    process.finish(process.start(_experiment(tokens), tmp_path / "whole"))
    environment = _with_a_jumping_clock(tmp_path / "clock", 1)
    running = process.start(
        _experiment(tokens), tmp_path / "run", environment=environment
    )
    output = process.finish(running, code=1)
    assert "see that the disk answers and that the clock does not jump" in output
    process.finish(process.start(_experiment(tokens), tmp_path / "run"))
    assert faults.lines(tmp_path / "run") == faults.lines(tmp_path / "whole")
