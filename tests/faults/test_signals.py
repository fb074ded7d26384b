"""SIGTERM, SIGINT and SIGHUP in every phase of training.

They leave a committed checkpoint and a true status, and end the process within seconds.
"""

import json
import os
import signal
import time

import pytest
from etils import epath

from sparsecod_jax import config
from sparsecod_jax.storage.rundir import RunDir
from tests.support import faults, process, tiny_configs

pytestmark = pytest.mark.faults

LIMIT = 15.0  # seconds from the signal to the end
STEPS = 60
# Of each signal in each phase.
TRIALS = int(os.environ.get("SPARSECOD_FAULT_TRIALS", "1"))

# What the process prints when a phase begins; None is before it prints anything.
PHASES = {
    "imports": None,
    "compiling": "compiling the train step",
    "restoring": "looking for a checkpoint",
    "initialising": "initialising",
    "stepping": "step 4/",
    "evaluating": "evaluating on the validation split",
    "saving": "step 10/",
    "the evaluation at the end": f"step {STEPS}/{STEPS}",
}
AFTER_A_STEP = ("stepping", "evaluating", "saving", "the evaluation at the end")


def _experiment(tokens):
    return tiny_configs.experiment(
        steps=STEPS,
        data={"path": str(tokens)},
        mesh=config.Mesh(1, 1, 1, 1),
        checkpoint={"every": 5},
        evaluation={"every": 7},
        log={"every": 2, "moments_every": 20},
    )


@pytest.fixture(scope="module")
def whole(tokens, tmp_path_factory):
    """The lines of an undisturbed run."""
    workdir = tmp_path_factory.mktemp("whole")
    process.finish(process.start(_experiment(tokens), workdir))
    return faults.lines(workdir)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_one_signal_saves_and_the_run_resumes_bit_for_bit(
    tokens, tmp_path, whole, phase, number
):
    slowest = 0.0
    for trial in range(TRIALS):
        workdir = tmp_path / str(trial)
        victim = process.start(_experiment(tokens), workdir)
        if words := PHASES[phase]:
            process.wait_until_it_says(victim, words)
        else:
            time.sleep(1.5)
        began = time.monotonic()
        victim.send_signal(number)
        output = process.finish(victim, code=75)
        slowest = max(slowest, time.monotonic() - began)
        assert "run the same command to resume" in output
        assert "Traceback" not in output
        run = RunDir(epath.Path(workdir))
        if run.status.exists():
            assert json.loads(run.status.read_text())["status"] == "preempted"
        if phase in AFTER_A_STEP:
            assert run.newest_checkpoint() == len(run.read_metrics()) > 0
        process.finish(process.start(_experiment(tokens), workdir))
        assert faults.lines(workdir) == whole
    print(
        f"\n{number.name} while {phase}: {TRIALS} of {TRIALS} survived,"
        f" ended within {slowest:.1f} s"
    )
    assert slowest < LIMIT


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_second_signal_ends_it_at_once_and_no_saved_step_is_lost(
    tokens, tmp_path, whole, number
):
    """Saving never ends, as on a disk that does not answer: it waits for a FIFO."""
    program = ("tests/support/stuck.py", "save", "15")
    victim = process.start(_experiment(tokens), tmp_path, program=program)
    process.wait_until_it_says(victim, "step 14/")
    victim.send_signal(number)
    time.sleep(2)
    assert victim.poll() is None
    began = time.monotonic()
    victim.send_signal(number)
    output = process.finish(victim, code=130)
    assert f"{number.name} came again: stopped at once" in output
    assert time.monotonic() - began < 5
    assert RunDir(epath.Path(tmp_path)).newest_checkpoint() == 10
    process.finish(process.start(_experiment(tokens), tmp_path))
    assert faults.lines(tmp_path) == whole


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_one_of_two_processes_stops_both(tokens, tmp_path, number):
    experiment = tiny_configs.experiment(
        steps=10**5,
        data={"path": str(tokens)},
        mesh=config.Mesh(1, 2, 1, 1),
        checkpoint={"every": 10**6},
        evaluation={"every": 9},
    )
    pair = process.start_several(experiment, tmp_path, 2)
    process.wait_for_line(pair[0], tmp_path / "metrics.jsonl", 4)
    began = time.monotonic()
    pair[1].send_signal(number)
    process.finish_all(pair, code=75)
    seconds = time.monotonic() - began
    print(f"\n{number.name} to one of two: ended after {seconds:.1f} s")
    assert seconds < LIMIT
    run = RunDir(epath.Path(tmp_path))
    assert json.loads(run.status.read_text())["status"] == "preempted"
    assert run.newest_checkpoint() == len(run.read_metrics())
