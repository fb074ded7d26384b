"""metrics.jsonl is whole, unique by step and strict JSON; TensorBoard holds the same numbers."""

import json
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]

from sparsecod_jax.rundir import Attempt, RunDir
from sparsecod_jax.train.writers import Writers, plain


@pytest.fixture
def run(tmp_path):
    return RunDir(epath.Path(tmp_path))


def _write(run, steps, restored=0, *, attempt="first", tensorboard=False):
    writers = Writers(Attempt(run, 0), restored)
    for step in steps:
        writers.write({"step": step, "loss": 1 / step, "by": attempt}, tensorboard=tensorboard)
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
    return {(event.step, value.tag): value.simple_value for event in _events(run) for value in event.summary.value}


def test_lines_past_the_restored_step_are_dropped(run):
    _write(run, range(1, 8))
    _write(run, range(5, 10), restored=4, attempt="second")
    assert _steps(run) == [*((step, "first") for step in range(1, 5)), *((step, "second") for step in range(5, 10))]
    assert not (run.path / "metrics.jsonl.partial").exists()


def test_a_line_cut_off_by_a_crash_is_dropped_and_written_again(run):
    _write(run, range(1, 5))
    with open(run.metrics, "a") as file:
        file.write('{"step": 5, "lo')
    _write(run, range(5, 7), restored=4, attempt="second")
    assert _steps(run) == [(1, "first"), (2, "first"), (3, "first"), (4, "first"), (5, "second"), (6, "second")]
    assert run.metrics.read_text().endswith("}\n")


def test_a_fresh_start_forgets_older_lines(run):
    _write(run, range(1, 4))
    _write(run, range(1, 3), restored=0, attempt="second")
    assert _steps(run) == [(1, "second"), (2, "second")]


def test_a_line_is_readable_while_the_run_goes_on(run):
    writers = Writers(Attempt(run, 0), 0)
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
    writers = Writers(Attempt(run, 0), 0)
    metrics = {"loss": np.float32(2.5), "variance/residual": np.arange(12) + 0.5, "grad_norm": np.float32(np.nan), "skipped_updates": 0}
    writers.write({"step": 1, **plain(metrics)}, tensorboard=False)
    writers.write({"step": 2, **plain(metrics | {"variance/residual": np.array([1.0, np.inf, 3.0])})}, tensorboard=True)
    writers.write({"step": 3, **plain(metrics)}, tensorboard=True)
    writers.close()
    assert _scalars(run) == {
        (2, "loss"): 2.5,
        (2, "skipped_updates"): 0,
        (2, "variance/residual/layer_00"): 1.0,
        (2, "variance/residual/layer_02"): 3.0,
        (3, "loss"): 2.5,
        (3, "skipped_updates"): 0,
        **{(3, f"variance/residual/layer_{layer:02d}"): layer + 0.5 for layer in range(12)},
    }


def test_tensorboard_drops_what_a_crash_left_beyond_the_restored_step(run):
    _write(run, range(1, 8), tensorboard=True)
    _write(run, range(5, 7), restored=4, tensorboard=True)
    restarts = [event.step for event in _events(run) if event.session_log.status == SessionLog.START]
    assert restarts[-1] == 5
    assert _scalars(run)[(6, "loss")] == pytest.approx(1 / 6)


BROKEN = {"step": 1, "variance/residual": ["not a number"]}


def test_an_error_in_the_tensorboard_thread_is_raised_at_the_next_line(run):
    writers = Writers(Attempt(run, 0), 0)
    writers.write(BROKEN, tensorboard=True)
    with pytest.raises(TypeError):
        writers.write({"step": 2}, tensorboard=True)
    assert [line["step"] for line in run.read_metrics()] == [1, 2]  # metrics.jsonl is the truth and has both


def test_an_error_in_the_tensorboard_thread_is_raised_at_the_end(run):
    writers = Writers(Attempt(run, 0), 0)
    writers.write(BROKEN, tensorboard=True)
    with pytest.raises(TypeError):
        writers.close()
