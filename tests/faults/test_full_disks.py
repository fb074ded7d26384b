"""A disk that is full, or becomes read-only, in each phase of a run.

No checkpoint is lost, and the process ends within LIMIT seconds.
"""

import json
import time

import pytest
from etils import epath

from sparsecod_jax import config
from sparsecod_jax.storage.rundir import RunDir
from tests.support import disks, faults, process, tiny_configs

pytestmark = pytest.mark.faults

LIMIT = 30.0  # seconds from the fault to the end
STEPS = 400


def _experiment(tokens, **sections):
    defaults = {
        "steps": STEPS,
        "data": {"path": str(tokens)},
        "mesh": config.Mesh(1, 1, 1, 1),
        "checkpoint": {"every": 10**6},
        "log": {"every": 1},
    }
    return tiny_configs.experiment(**{**defaults, **sections})


@pytest.fixture(scope="module")
def whole(tokens, tmp_path_factory):
    """The lines of an undisturbed run."""
    workdir = tmp_path_factory.mktemp("whole")
    process.finish(process.start(_experiment(tokens), workdir))
    return faults.lines(workdir)


@pytest.fixture
def disk(tmp_path):
    """A file system of 24 MiB; a checkpoint of these runs takes 1 MiB."""
    with disks.mounted(tmp_path / "disk", "24m", "ext4") as folder:
        yield folder


def _full(disk):
    disks.fill(disk)


def _read_only(disk):
    disks.fail(disk)


def _mend(disk):
    if (disk / "ballast").exists():
        (disk / "ballast").unlink()
    else:
        disks.mend(disk)


def _end(running, codes, what):
    """Waits for the end, which must be orderly and soon; returns the output."""
    began = time.monotonic()
    output, _ = running.communicate(timeout=120)
    seconds = time.monotonic() - began
    print(f"\n{what}: ended with {running.returncode} after {seconds:.1f} s")
    assert running.returncode in codes, output
    assert seconds < LIMIT
    assert "Traceback" not in output
    return output


def _saved_steps(run: RunDir) -> list[str]:
    return [path.name for path in run.checkpoints.iterdir() if path.name.isdigit()]


FAULTS = [_full, _read_only]


@pytest.mark.parametrize("fault", FAULTS)
def test_at_the_start(tokens, disk, fault):
    fault(disk)
    running = process.start(_experiment(tokens), disk / "run")
    if fault is _read_only:
        process.wait_until_it_says(running, "compiling the train step")
    output = _end(running, (1, 78), f"start, {fault.__name__}")
    assert "No space" in output or "MiB" in output or "Read-only" in output
    assert not (disk / "run" / "manifest.json").exists()


def test_while_logging_on_a_disk_that_has_room_again(tokens, disk, whole):
    """Training continues meanwhile, and no line is lost."""
    run = disk / "run"
    running = process.start(_experiment(tokens), run)
    process.wait_for_line(running, run / "metrics.jsonl", 20)
    _full(disk)
    time.sleep(2)
    _mend(disk)
    output = process.finish(running)
    warnings = output.count("metrics.jsonl can't be written")
    print(f"\nlogging, _full: {warnings} warnings, continued to its end")
    assert warnings <= 1
    assert faults.lines(run) == whole


def test_while_logging_on_a_disk_that_has_failed(tokens, disk, whole):
    """Training continues until it would save, and what was saved before is there."""
    run = RunDir(epath.Path(disk / "run"))
    experiment = _experiment(tokens, checkpoint={"every": 200})
    running = process.start(experiment, run.path)
    process.wait_for_line(running, run.metrics, 210)
    _read_only(disk)
    process.wait_until_it_says(running, f"step {STEPS}/")
    output = _end(running, (1,), "logging, _read_only")
    assert "lines that found no room" in output
    _mend(disk)
    assert "restored step 200" in process.finish(process.start(experiment, run.path))
    assert faults.lines(run.path) == whole


@pytest.mark.parametrize("fault", FAULTS)
def test_while_saving(tokens, disk, whole, fault):
    run = RunDir(epath.Path(disk / "run"))
    experiment = _experiment(tokens, checkpoint={"every": 100})
    running = process.start(experiment, run.path)
    while run.newest_checkpoint() < 100:
        assert running.poll() is None
        time.sleep(0.01)
    fault(disk)
    process.wait_until_it_says(running, "step 199/")
    output = _end(running, (1,), f"saving, {fault.__name__}")
    assert "make room" in output
    assert _saved_steps(run) == ["100"]
    _mend(disk)
    assert "restored step 100" in process.finish(process.start(experiment, run.path))
    assert faults.lines(run.path) == whole


@pytest.mark.parametrize("fault", FAULTS)
def test_while_evaluating(tokens, disk, fault):
    """The fault comes with the first evaluation; the next checkpoint can't be saved."""
    run = RunDir(epath.Path(disk / "run"))
    experiment = _experiment(tokens, checkpoint={"every": 50}, evaluation={"every": 60})
    running = process.start(experiment, run.path)
    process.wait_until_it_says(running, "evaluating on the validation split")
    fault(disk)
    process.wait_until_it_says(running, "step 99/")
    _end(running, (1,), f"evaluating, {fault.__name__}")
    assert _saved_steps(run) == ["50"]
    _mend(disk)
    assert "restored step 50" in process.finish(process.start(experiment, run.path))
    evaluated = faults.lines(run.path)[59:STEPS:60]
    assert len(evaluated) == 6
    assert all("evaluation/loss" in line for line in evaluated)


@pytest.mark.parametrize("fault", FAULTS)
def test_at_the_final_numbers(tokens, disk, whole, fault):
    run = RunDir(epath.Path(disk / "run"))
    experiment = _experiment(tokens, evaluation={"batch_size": 1})
    running = process.start(experiment, run.path)
    while run.newest_checkpoint() < STEPS:
        assert running.poll() is None
        time.sleep(0.005)
    fault(disk)
    output = _end(running, (0, 1, 78), f"final numbers, {fault.__name__}")
    if running.returncode:
        assert not run.final.exists()
    _mend(disk)
    process.finish(process.start(experiment, run.path))
    assert json.loads(run.status.read_text())["status"] == "finished"
    assert faults.lines(run.path) == whole
    assert output


def test_a_checkpoint_that_can_never_fit_is_refused_before_training(tokens, disk):
    model = {"d_model": 512, "d_ff": 1024, "n_heads": 4, "n_kv_heads": 2}
    running = process.start(_experiment(tokens, model=model), disk / "run")
    output = _end(running, (1, 78), "too large a checkpoint")
    assert "a checkpoint takes" in output
    assert not (disk / "run").exists()
