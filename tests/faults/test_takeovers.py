"""A process is stopped, and its run directory becomes that of another run.

It writes nothing more when it continues.
"""

import dataclasses
import json
import shutil
import signal

import pytest

from sparsecod_jax import config
from tests.support import faults, process, tiny_configs

pytestmark = pytest.mark.faults


@pytest.mark.parametrize(
    "live", [False, True], ids=["the new run was killed", "the new run is live"]
)
def test_a_directory_that_was_replaced_under_a_stopped_run(tokens, tmp_path, live):
    sections = {
        "mesh": config.Mesh(1, 1, 1, 1),
        "data": {"path": str(tokens)},
        "checkpoint": {"every": 10},
    }
    old = tiny_configs.experiment(steps=60, optimizer={"peak_lr": 1e-2}, **sections)
    new = dataclasses.replace(old, optimizer=config.Optimizer(peak_lr=1e-3))
    process.finish(process.start(new, tmp_path / "whole"))
    workdir = tmp_path / "run"
    metrics = workdir / "metrics.jsonl"

    first = process.start(old, workdir)
    process.signal_at_line(first, metrics, 15, signal.SIGSTOP)
    shutil.rmtree(workdir)
    second = process.start(new, workdir)
    process.wait_for_line(second, metrics, 25)
    if not live:
        second.kill()
        second.wait()
    first.send_signal(signal.SIGCONT)
    sentence = "was removed or replaced under attempt 1: it stops before writing more"
    assert sentence in process.finish(first, code=76)
    if not live:
        second = process.start(new, workdir)
    process.finish(second)
    assert faults.run_of(workdir) == faults.run_of(tmp_path / "whole")
    values = json.loads((workdir / "config.json").read_text())
    assert values["optimizer"]["peak_lr"] == 1e-3
