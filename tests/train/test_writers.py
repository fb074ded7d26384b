"""metrics.jsonl is whole, unique by step and strict JSON; TensorBoard holds the same numbers."""

import json
import struct
import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]

from sparsecod_jax.storage.attempts import Attempt
from sparsecod_jax.storage.rundir import RunDir
from sparsecod_jax.train import curves
from sparsecod_jax.train.writers import Writers, plain
from tests.support import disks


@pytest.fixture
def run(tmp_path):
    return RunDir(epath.Path(tmp_path))


def _write(run, steps, restored=0, *, attempt="first", tensorboard=False):
    writers = Writers(Attempt(run, 0))
    writers.begin(restored)
    for step in steps:
        writers.write(
            {"step": step, "loss": 1 / step, "by": attempt}, tensorboard=tensorboard
        )
    writers.close()


def _steps(run):
    return [(line["step"], line["by"]) for line in run.read_metrics()]


def _events(run):
    """Every record of the event files: its length, a checksum, the message, a checksum."""
    events = []
    for file in sorted(run.tensorboard.iterdir()):
        content, place = file.read_bytes(), 0
        while place < len(content):
            (length,) = struct.unpack("<Q", content[place : place + 8])
            message = content[place + 12 : place + 12 + length]
            assert len(message) == length
            events.append(Event.FromString(message))
            place += length + 16
    return events


def _scalars(run):
    return {
        (event.step, value.tag): value.simple_value
        for event in _events(run)
        for value in event.summary.value
    }


def test_lines_past_the_restored_step_are_dropped(run):
    _write(run, range(1, 8))
    _write(run, range(5, 10), restored=4, attempt="second")
    assert _steps(run) == [
        *((step, "first") for step in range(1, 5)),
        *((step, "second") for step in range(5, 10)),
    ]
    assert not (run.path / "metrics.jsonl.partial").exists()


def test_a_line_cut_off_by_a_crash_is_dropped_and_written_again(run):
    _write(run, range(1, 5))
    with open(run.metrics, "a") as file:
        file.write('{"step": 5, "lo')
    _write(run, range(5, 7), restored=4, attempt="second")
    assert _steps(run) == [
        *((step, "first") for step in range(1, 5)),
        *((step, "second") for step in range(5, 7)),
    ]
    assert run.metrics.read_text().endswith("}\n")


def test_a_fresh_start_forgets_older_lines(run):
    _write(run, range(1, 4))
    _write(run, range(1, 3), restored=0, attempt="second")
    assert _steps(run) == [(1, "second"), (2, "second")]


def test_a_line_is_readable_while_the_run_continues(run):
    writers = Writers(Attempt(run, 0))
    writers.begin(0)
    writers.write({"step": 1, "by": "live"}, tensorboard=False)
    assert _steps(run) == [(1, "live")]
    writers.close()


def _strict(text):
    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_numbers_that_are_not_finite_are_null_and_named():
    metrics = {
        "step": 3,
        "loss": jnp.float32(jnp.nan),
        "grad_norm": np.float32(np.inf),
        "variance/residual": jnp.array([1.0, -jnp.inf, 2.0]),
        "heads": np.array([[1.0, np.nan], [np.inf, 4.0]]),
        "fine": np.array([[1.0, 2.0], [3.0, 4.0]]),
        "rounded": jnp.bfloat16(1.5),
        "count": np.int32(7),
        "skipped": True,
    }
    assert _strict(json.dumps(plain(metrics))) == {
        "step": 3,
        "loss": None,
        "grad_norm": None,
        "variance/residual": [1.0, None, 2.0],
        "heads": [[1.0, None], [None, 4.0]],
        "fine": [[1.0, 2.0], [3.0, 4.0]],
        "rounded": 1.5,
        "count": 7,
        "skipped": True,
        "nonfinite": ["grad_norm", "heads", "loss", "variance/residual"],
    }
    assert "nonfinite" not in plain({"loss": np.float32(1)})


def test_tensorboard_has_a_curve_for_each_block(run):
    writers = Writers(Attempt(run, 0))
    writers.begin(0)
    metrics = {
        "loss": np.float32(2.5),
        "variance/residual": np.arange(12) + 0.5,
        "grad_norm": np.float32(np.nan),
        "skipped_updates": 0,
    }
    writers.write({"step": 1, **plain(metrics)}, tensorboard=False)
    writers.write(
        {
            "step": 2,
            **plain(metrics | {"variance/residual": np.array([1.0, np.inf, 3.0])}),
        },
        tensorboard=True,
    )
    writers.write({"step": 3, **plain(metrics)}, tensorboard=True)
    writers.close()
    assert _scalars(run) == {
        (2, "loss"): 2.5,
        (2, "skipped_updates"): 0,
        (2, "variance/residual/layer_00"): 1.0,
        (2, "variance/residual/layer_02"): 3.0,
        (3, "loss"): 2.5,
        (3, "skipped_updates"): 0,
        **{
            (3, f"variance/residual/layer_{layer:02d}"): layer + 0.5
            for layer in range(12)
        },
    }


def test_tensorboard_drops_what_a_crash_left_beyond_the_restored_step(run):
    _write(run, range(1, 8), tensorboard=True)
    _write(run, range(5, 7), restored=4, tensorboard=True)
    restarts = [
        event.step
        for event in _events(run)
        if event.session_log.status == SessionLog.START
    ]
    assert restarts[-1] == 5
    assert _scalars(run)[(6, "loss")] == pytest.approx(1 / 6)


BROKEN = {"step": 1, "variance/residual": ["not a number"]}


def test_curves_that_can_not_be_written_are_counted_and_the_next_ones_are_there(
    run, capsys
):
    writers = Writers(Attempt(run, 0))
    writers.begin(0)
    writers.write(BROKEN, tensorboard=True)
    writers.write({"step": 2, "loss": 1.5}, tensorboard=True)
    writers.close()
    # metrics.jsonl is the truth and has both.
    assert [line["step"] for line in run.read_metrics()] == [1, 2]
    assert _scalars(run) == {(2, "loss"): 1.5}
    warnings = capsys.readouterr().err
    assert warnings.count("TensorBoard's files can't be written") == 1
    assert "tensorboard lacks 1 steps" in warnings


def test_curves_never_hold_up_a_step(run):
    """The folder's place is a FIFO that nobody reads: as on a disk that does not answer."""
    run.tensorboard.mkdir()
    writers = Writers(Attempt(run, 0))
    writers.begin(0)
    writers._curves._begin = lambda: threading.Event().wait()  # pyright: ignore[reportAttributeAccessIssue]
    began = time.monotonic()
    for step in range(1, 301):
        writers.write({"step": step, "loss": 1.5}, tensorboard=True)
    assert time.monotonic() - began < 5
    assert writers._curves.lost >= 300 - curves.LINES - 1
    assert len(run.read_metrics()) == 300


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB."""
    with disks.mounted(tmp_path / "disk", "256k") as place:
        yield place


def test_lines_that_find_no_room_wait_for_it(small_disk, capsys):
    """Nothing is cut in two, the warning comes once, and with room all lines are there."""
    run = RunDir(epath.Path(small_disk / "run"))
    run.path.mkdir()
    writers = Writers(Attempt(run, 0))
    writers.begin(0)
    for step in range(1, 11):
        writers.write({"step": step, "loss": 1 / step}, tensorboard=False)
    ballast = disks.fill(small_disk)
    for step in range(11, 200):
        writers.write(
            {"step": step, "loss": 1 / step, "long": [step] * 50},
            tensorboard=step % 10 == 0,
        )
    writers.sync()
    written = run.read_metrics()
    assert [line["step"] for line in written] == list(range(1, len(written) + 1))
    assert 10 <= len(written) < 199
    assert run.metrics.read_text().endswith("\n")
    ballast.unlink()
    writers.write({"step": 200, "loss": 1.0}, tensorboard=False)
    assert [line["step"] for line in run.read_metrics()] == list(range(1, 201))
    writers.close()
    problem = "metrics.jsonl can't be written (No space left on device)"
    assert capsys.readouterr().err.count(f"{problem}: training continues") == 1


def test_lines_that_never_find_room_are_counted_at_the_end(small_disk, capsys):
    run = RunDir(epath.Path(small_disk / "run"))
    run.path.mkdir()
    writers = Writers(Attempt(run, 0))
    writers.begin(0)
    disks.fill(small_disk)
    for step in range(1, 100):
        writers.write({"step": step, "long": [step] * 100}, tensorboard=False)
    writers.close()
    lost = 99 - len(run.read_metrics())
    warnings = capsys.readouterr().err
    assert f"metrics.jsonl lacks {lost} lines that found no room" in warnings


def test_without_lines_no_evaluation_is_missed(run):
    writers = Writers(Attempt(run, 0))
    writers.begin(3)
    assert not writers.lacks_evaluation(3)
    writers.close()


def test_an_evaluation_that_was_left_is_added_to_its_line(run):
    _write(run, range(1, 5))
    writers = Writers(Attempt(run, 0))
    writers.begin(3)
    assert writers.lacks_evaluation(3)
    assert not writers.lacks_evaluation(4)  # whose line was lost
    writers.amend({"evaluation/loss": 2.5})
    assert not writers.lacks_evaluation(3)
    writers.write({"step": 4, "loss": 0.25, "by": "second"}, tensorboard=False)
    writers.close()
    assert run.read_metrics()[2:] == [
        {"step": 3, "loss": 1 / 3, "by": "first", "evaluation/loss": 2.5},
        {"step": 4, "loss": 0.25, "by": "second"},
    ]
    assert _scalars(run) == {(3, "evaluation/loss"): 2.5}
