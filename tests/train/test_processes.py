"""One run in several real processes.

It has the same numbers, disjoint reads, common checkpoints, and a common end.
"""

import json
import shutil
import signal

import numpy as np
import pytest
from etils import epath

from sparsecod_jax import config
from sparsecod_jax.data.pipeline import example_stream
from sparsecod_jax.data.store import Windows, read_manifest
from sparsecod_jax.storage.rundir import RunDir
from sparsecod_jax.train.loop import train
from tests.support import process, tiny_configs

STEPS, BATCH, DEVICES = 6, 8, 4
SAME = ("step", "tokens", "first_example", "batch_digest")


def _experiment(tokens, **sections):
    sections["data"] = {"path": str(tokens), **sections.get("data", {})}
    sections = {
        "mesh": config.Mesh(1, DEVICES, 1, 1),
        "evaluation": {"max_tokens": 1000},
        **sections,
    }
    return tiny_configs.experiment(
        **{"steps": STEPS, "global_batch": BATCH, **sections}
    )


def _lines(workdir):
    return RunDir(epath.Path(workdir)).read_metrics()


def _slurm(index: int, count: int, port: int) -> dict[str, str]:
    """What a process finds under srun on one host."""
    values = {
        "JOB_ID": port,
        "STEP_NODELIST": "localhost",
        "NTASKS": count,
        "PROCID": index,
        "LOCALID": index,
    }
    return {f"SLURM_{name}": str(value) for name, value in values.items()} | {
        "JAX_COORDINATOR_PORT": str(port)
    }


def _assert_same_run(lines, expected, tolerance=1e-5):
    for name in SAME:
        assert [line[name] for line in lines] == [line[name] for line in expected]
    for name in ("loss", "grad_norm", "variance/residual"):
        np.testing.assert_allclose(
            [line[name] for line in lines],
            [line[name] for line in expected],
            rtol=tolerance,
            err_msg=name,
        )


@pytest.fixture(scope="module")
def runs(tokens, tmp_path_factory):
    """One experiment on four devices of 1, 2 and 4 processes.

    The two are found by JAX under Slurm. `reads-N-i` has what process i of N read.
    """
    folder, port = tmp_path_factory.mktemp("runs"), process.free_port()
    experiment = _experiment(tokens)

    def program(count, index):
        return ("tests/support/recording.py", str(folder / f"reads-{count}-{index}"))

    alone = process.start(
        experiment, folder / "1", devices=DEVICES, program=program(1, 0)
    )
    pair = [
        process.start(
            experiment,
            folder / "2",
            devices=2,
            program=program(2, index),
            environment=_slurm(index, 2, port),
        )
        for index in range(2)
    ]
    outputs = {
        1: [process.finish(alone)],
        2: [process.finish(member) for member in pair],
    }
    outputs[4] = process.finish_all(
        process.start_several(
            experiment, folder / "4", 4, programs=[program(4, i) for i in range(4)]
        )
    )
    return folder, outputs


def test_the_numbers_do_not_depend_on_the_processes(runs):
    folder, outputs = runs
    finals = {}
    for count in (1, 2, 4):
        lines, expected = _lines(folder / str(count)), _lines(folder / "1")
        assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
        _assert_same_run(lines, expected)
        finals[count] = json.loads((folder / str(count) / "final.json").read_text())
        assert finals[count]["loss"] == pytest.approx(finals[1]["loss"], rel=1e-5)
        assert finals[count]["evaluation_tokens"] == finals[1]["evaluation_tokens"]
        assert finals[count]["compile_seconds"] > 0
        manifest = json.loads((folder / str(count) / "manifest.json").read_text())
        assert manifest["devices"] == {
            "kind": "cpu",
            "count": DEVICES,
            "processes": count,
        }
        assert len(list((folder / str(count) / "tensorboard").iterdir())) == 1
        assert len(list((folder / str(count) / "attempts").iterdir())) == 1
        first, *others = outputs[count]
        assert f"step {STEPS}/{STEPS} | loss" in first
        assert not [output for output in others if "step" in output or "loss" in output]


def test_each_process_reads_its_rows_and_no_others(runs, tokens):
    folder, _ = runs
    order = _order_of_windows(tokens)
    in_epoch = len(order) // BATCH
    for count in (1, 2, 4):
        reads = [
            [
                int(line)
                for line in (folder / f"reads-{count}-{index}").read_text().split()
            ]
            for index in range(count)
        ]
        rows = BATCH // count
        for index, read in enumerate(reads):
            assert len(set(read)) == len(read), "a window was read twice"
            slices = [
                order[step * BATCH + index * rows : step * BATCH + (index + 1) * rows]
                for step in range(in_epoch)
            ]
            assert set(read) >= {window for part in slices[:STEPS] for window in part}
            assert set(read) <= {window for part in slices for window in part}
        assert sum(map(len, reads)) == len(
            {window for read in reads for window in read}
        ), "two processes read the same window"


def _order_of_windows(tokens) -> list[int]:
    """The numbers of the training windows in the order of the first epoch."""
    manifest = read_manifest(tokens, "")
    experiment = _experiment(tokens)
    windows = Windows(tokens, manifest, manifest.train, experiment.data.seq_len)
    stream = example_stream(range(len(windows)), experiment.data.seed)  # pyright: ignore[reportArgumentType]
    return [int(np.asarray(stream[place])) for place in range(len(windows))]


def test_checkpoints_pass_from_four_processes_to_one_and_back(runs, tokens, tmp_path):
    """Without what came after step 2, as after a crash, one process resumes.

    Then, without what came after step 4, four resume in another mesh. There, step 6 is
    one that the four saved, in which the share of process 2 is damaged: all must fall
    back to the same older one.
    """
    folder, _ = runs
    moved, damaged = tmp_path / "moved", tmp_path / "damaged"
    shutil.copytree(folder / "4", moved)
    (moved / "final.json").unlink()
    (moved / "checkpoints" / "6").rename(damaged)
    shutil.rmtree(moved / "checkpoints" / "4")
    train(_experiment(tokens, mesh=config.Mesh(1, 8, 1, 1)), str(moved))
    _assert_same_run(_lines(moved), _lines(folder / "1"))

    (moved / "final.json").unlink()
    shutil.rmtree(moved / "checkpoints" / "6")
    damaged.rename(moved / "checkpoints" / "6")
    shares = moved / "checkpoints" / "6" / "state" / "ocdbt.process_2" / "d"
    for share in shares.iterdir():
        share.write_bytes(share.read_bytes()[:100])
    first, *_ = process.finish_all(
        process.start_several(
            _experiment(tokens, mesh=config.Mesh(1, 2, 1, 2)), moved, 4
        )
    )
    assert "checkpoint 6 can't be used (SparsecodError: process " in first
    assert "restored step 4" in first
    assert [path.name for path in (moved / "quarantine").iterdir()] == ["6-0"]
    _assert_same_run(_lines(moved), _lines(folder / "1"))
    steps = sorted(path.name for path in (moved / "checkpoints").iterdir())
    assert steps == ["2", "4", "6"]
    attempts = sorted(path.name for path in (moved / "attempts").iterdir())
    assert attempts == ["0001.json", "0002.json", "0003.json"]


def test_sigterm_to_one_stops_all_and_a_second_job_is_turned_away(tokens, tmp_path):
    """With a mixture of experts, which are spread over the processes.

    Before the signal its numbers are those of one process.
    """
    endless = {
        "model": tiny_configs.MIXTURE,
        "schedule": {"kind": "constant"},
        "checkpoint": {"every": 10**6},
    }
    experiment = _experiment(
        tokens, steps=10**5, mesh=config.Mesh(1, 1, 2, 1), **endless
    )
    pair = process.start_several(experiment, tmp_path / "pair", 2)
    process.wait_for_line(pair[0], tmp_path / "pair" / "metrics.jsonl", 4)
    # Leaves the processor to the second job, and the directory to the first.
    for member in pair:
        member.send_signal(signal.SIGSTOP)
    for output in process.finish_all(
        process.start_several(experiment, tmp_path / "pair", 2), code=76
    ):
        assert "another process is at work in" in output
    for member in pair:
        member.send_signal(signal.SIGCONT)
    pair[1].send_signal(signal.SIGTERM)
    outputs = process.finish_all(pair, code=75)
    lines = _lines(tmp_path / "pair")
    last = len(lines)
    sentence = f"stopped at step {last} of 100000; run the same command to resume"
    for output in outputs:
        assert sentence in output
    steps = [path.name for path in (tmp_path / "pair" / "checkpoints").iterdir()]
    assert steps == [str(last)]
    status = json.loads((tmp_path / "pair" / "status.json").read_text())
    assert status["status"] == "preempted"

    train(
        _experiment(tokens, steps=4, mesh=config.Mesh(1, 1, 4, 2), **endless),
        str(tmp_path / "alone"),
    )
    _assert_same_run(lines[:4], _lines(tmp_path / "alone"))
    assert [line["router/max_load"] for line in lines[:4]] == [
        line["router/max_load"] for line in _lines(tmp_path / "alone")
    ]


def test_what_one_process_must_refuse_all_refuse(tokens, tmp_path):
    """With the same sentence and exit code, before anything is written."""
    lost = [
        _experiment(tokens),
        _experiment(tokens, data={"path": str(tmp_path / "nowhere")}),
    ]
    other = [_experiment(tokens), _experiment(tokens, log={"every": 3})]
    jobs = [
        (
            process.start_several(lost, tmp_path / "lost", 2),
            f"there is no data in {tmp_path / 'nowhere'}: run `sparsecod data",
        ),
        (
            process.start_several(other, tmp_path / "other", 2),
            "process 1 was given another --workdir, config or data than process 0",
        ),
    ]
    for pair, sentence in jobs:
        for output in process.finish_all(pair, code=78):
            assert sentence in output
    assert not list(tmp_path.iterdir())
