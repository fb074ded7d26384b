"""A disk that is full, or turns read-only, in each phase of a run: no checkpoint lost, no hang, out within 30 s."""

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
    return tiny_configs.experiment(
        **{
            "steps": STEPS,
            "data": {"path": str(tokens)},
            "mesh": config.Mesh(1, 1, 1, 1),
            "checkpoint": {"every": 10**6},
            "log": {"every": 1},
            **sections,
        }
    )


@pytest.fixture(scope="module")
def whole(tokens, tmp_path_factory):
    place = tmp_path_factory.mktemp("whole")
    process.finish(process.start(_experiment(tokens), place))
    return faults.lines(place)


@pytest.fixture
def disk(tmp_path):
    """A file system of 24 MiB; a checkpoint of these runs takes 1."""
    with disks.mounted(tmp_path / "disk", "24m", "ext4") as place:
        yield place


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
    began = time.monotonic()
    output, _ = running.communicate(timeout=120)
    seconds = time.monotonic() - began
    print(f"\n{what}: ended with {running.returncode} after {seconds:.1f} s")
    assert running.returncode in codes, output
    assert seconds < LIMIT
    assert "Traceback" not in output
    return output


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
    """Training goes on meanwhile, and no line is lost."""
    run = disk / "run"
    running = process.start(_experiment(tokens), run)
    process.wait_for_line(running, run / "metrics.jsonl", 20)
    _full(disk)
    time.sleep(2)
    _mend(disk)
    output = process.finish(running)
    print(
        f"\nlogging, _full: {output.count('training continues')} warnings, went on to its end"
    )
    assert output.count("metrics.jsonl can't be written") <= 1
    assert faults.lines(run) == whole


def test_while_logging_on_a_disk_that_has_failed(tokens, disk, whole):
    """Training goes on until it would save, and what was saved before is there."""
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
    assert [path.name for path in run.checkpoints.iterdir() if path.name.isdigit()] == [
        "100"
    ]
    _mend(disk)
    assert "restored step 100" in process.finish(process.start(experiment, run.path))
    assert faults.lines(run.path) == whole


@pytest.mark.parametrize("fault", FAULTS)
def test_while_evaluating(tokens, disk, fault):
    """The fault comes with the first evaluation; the checkpoint after it can't be made."""
    run = RunDir(epath.Path(disk / "run"))
    experiment = _experiment(tokens, checkpoint={"every": 50}, evaluation={"every": 60})
    running = process.start(experiment, run.path)
    process.wait_until_it_says(running, "evaluating on the validation split")
    fault(disk)
    process.wait_until_it_says(running, "step 99/")
    _end(running, (1,), f"evaluating, {fault.__name__}")
    assert [path.name for path in run.checkpoints.iterdir() if path.name.isdigit()] == [
        "50"
    ]
    _mend(disk)
    assert "restored step 50" in process.finish(process.start(experiment, run.path))
    assert [
        "evaluation/loss" in line for line in faults.lines(run.path)[59:STEPS:60]
    ] == [True] * 6


@pytest.mark.parametrize("fault", FAULTS)
def test_at_the_final_numbers(tokens, disk, whole, fault):
    run = RunDir(epath.Path(disk / "run"))
    running = process.start(_experiment(tokens, evaluation={"batch_size": 1}), run.path)
    while run.newest_checkpoint() < STEPS:
        assert running.poll() is None
        time.sleep(0.005)
    fault(disk)
    output = _end(running, (0, 1, 78), f"final numbers, {fault.__name__}")
    if running.returncode:
        assert not run.final.exists()
    _mend(disk)
    process.finish(
        process.start(_experiment(tokens, evaluation={"batch_size": 1}), run.path)
    )
    assert json.loads(run.status.read_text())["status"] == "finished"
    assert faults.lines(run.path) == whole
    assert output


def test_a_checkpoint_that_can_never_fit_is_refused_before_training(tokens, disk):
    experiment = _experiment(
        tokens, model={"d_model": 512, "d_ff": 1024, "n_heads": 4, "n_kv_heads": 2}
    )
    output = _end(
        process.start(experiment, disk / "run"), (1, 78), "too large a checkpoint"
    )
    assert "a checkpoint takes" in output
    assert not (disk / "run").exists()
