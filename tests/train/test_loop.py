"""Whole runs: what is logged, what survives being killed, and who may write."""

import contextlib
import dataclasses
import errno
import json
import os
import random
import shutil
import signal
import time

import jax
import numpy as np
import pytest
from etils import epath

from sparsecod_jax import config
from sparsecod_jax.data.pipeline import example_stream
from sparsecod_jax.data.store import Windows, read_manifest
from sparsecod_jax.errors import ConfigError, Diverged, Fenced
from sparsecod_jax.storage import files
from sparsecod_jax.storage.attempts import claim
from sparsecod_jax.storage.checkpoint import Checkpointer
from sparsecod_jax.storage.records import read_record, write_record
from sparsecod_jax.storage.rundir import RunDir
from sparsecod_jax.train import loop, start
from sparsecod_jax.train.evaluation import evaluator
from sparsecod_jax.train.loop import train
from sparsecod_jax.train.step import build
from tests.support import numpy_model, process, tiny_configs

TIMES = ("tokens_per_second",)
ROUTER = (
    "load_balance_loss",
    "z_loss",
    "gate_sum",
    "gate_square_sum",
    "dropped",
    "max_load",
    "load_entropy",
    "dead_experts",
)


def _experiment(tokens, **sections):
    sections["data"] = {"path": str(tokens), **sections.get("data", {})}
    return tiny_configs.experiment(**sections)


def _lines(workdir):
    lines = RunDir(epath.Path(workdir)).read_metrics()
    return [
        {name: value for name, value in line.items() if name not in TIMES}
        for line in lines
    ]


def _status(workdir):
    return json.loads((workdir / "status.json").read_text())["status"]


def _files(workdir):
    """The content of every file, by path."""
    paths = [path for path in workdir.rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in paths}


def _one_device(tokens, **sections):
    return _experiment(tokens, mesh=config.Mesh(1, 1, 1, 1), **sections)


def test_statistics_of_a_trained_sharded_run_equal_numpy(tokens, tmp_path):
    """Line s describes the state of checkpoint s-1 on the recorded examples.

    Of 8 blocks, on the mesh fsdp 4 x tensor 2, with accumulation 2.
    """
    experiment = _experiment(
        tokens,
        steps=12,
        model={"n_layers": 8},
        mesh=config.Mesh(1, 4, 1, 2),
        execution={"accumulation": 2},
        checkpoint={"every": 1, "keep": 20},
    )
    train(experiment, str(tmp_path))
    run, manifest = RunDir(epath.Path(tmp_path)), read_manifest(tokens, "")
    stream = example_stream(
        Windows(tokens, manifest, manifest.train, experiment.data.seq_len),
        experiment.data.seed,
    )
    abstract = build(experiment, jax.devices()).abstract_state
    for line in _lines(tmp_path)[10:]:
        checkpointer = Checkpointer(run, keep=20)
        items = checkpointer._restore(line["step"] - 1, {"state": abstract}).items
        params = jax.device_get(items["state"].params)
        rows = np.stack(
            [
                stream[line["first_example"] + row]
                for row in range(experiment.global_batch)
            ]
        )
        logits, stats = numpy_model.forward(params, rows[:, :-1], experiment.model)
        for name, values in stats.items():
            np.testing.assert_allclose(
                np.atleast_1d(line[name]),
                values,
                rtol=1e-5,
                err_msg=f"{name} at step {line['step']}",
            )
        picked = np.take_along_axis(logits, rows[:, 1:, None], axis=-1)[..., 0]
        loss = (np.log(np.exp(logits).sum(-1)) - picked).mean()
        assert line["loss"] == pytest.approx(loss, rel=1e-5)


def test_killed_twice_ends_bitwise_where_the_uninterrupted_run_does(tokens, tmp_path):
    """kill -9 at random steps, the second after a resume; the run crosses an epoch boundary."""
    manifest = read_manifest(tokens, "")
    windows = len(Windows(tokens, manifest, manifest.train, 32))
    steps = windows // 8 + 12
    experiment = _one_device(
        tokens, steps=steps, checkpoint={"every": 7}, log={"moments_every": 10}
    )
    assert (steps - 8) * 8 > windows
    process.finish(process.start(experiment, tmp_path / "whole"))
    seed = random.randrange(10**6)
    print("kill seed", seed)
    first, second = sorted(random.Random(seed).sample(range(8, steps - 1), 2))
    for at in (first, second):
        victim = process.start(experiment, tmp_path / "killed")
        process.signal_at_line(
            victim, tmp_path / "killed" / "metrics.jsonl", at, signal.SIGKILL
        )
        assert victim.wait() == -signal.SIGKILL
    output = process.finish(process.start(experiment, tmp_path / "killed"))
    assert "restored step" in output
    assert _lines(tmp_path / "killed") == _lines(tmp_path / "whole")
    finals = [
        json.loads((tmp_path / name / "final.json").read_text())
        for name in ("killed", "whole")
    ]
    assert finals[0]["loss"] == finals[1]["loss"]
    assert _status(tmp_path / "killed") == "finished"
    again = process.finish(process.start(experiment, tmp_path / "killed"))
    assert "already finished" in again


def test_sigterm_saves_exits_75_and_eight_devices_become_two(tokens, tmp_path):
    """The examples stay the same on another mesh, the losses to rounding."""
    experiment = _experiment(tokens, steps=40, checkpoint={"every": 1000})
    whole = _one_device(tokens, steps=40, checkpoint={"every": 1000})
    process.finish(process.start(whole, tmp_path / "whole"))
    victim = process.start(experiment, tmp_path / "moved", devices=8)
    process.signal_at_line(
        victim, tmp_path / "moved" / "metrics.jsonl", 6, signal.SIGTERM
    )
    assert "run the same command to resume" in process.finish(victim, code=75)
    assert _status(tmp_path / "moved") == "preempted"
    stopped = len(_lines(tmp_path / "moved"))
    assert 6 <= stopped < 40
    output = process.finish(process.start(experiment, tmp_path / "moved", devices=2))
    assert f"restored step {stopped}" in output
    moved, straight = _lines(tmp_path / "moved"), _lines(tmp_path / "whole")
    for name in ("step", "tokens", "first_example", "batch_digest"):
        assert [line[name] for line in moved] == [line[name] for line in straight]
    np.testing.assert_allclose(
        [line["loss"] for line in moved], [line["loss"] for line in straight], rtol=1e-4
    )


def test_a_mixture_of_experts_resumes_with_its_experts_on_other_devices(
    tokens, tmp_path, capsys
):
    """In a copy of the run without what came after step 2, as a crash leaves it."""
    sections = {"steps": 4, "model": tiny_configs.MIXTURE, "checkpoint": {"every": 2}}
    train(
        _experiment(tokens, mesh=config.Mesh(2, 2, 2, 1), **sections),
        str(tmp_path / "whole"),
    )
    shutil.copytree(tmp_path / "whole", tmp_path / "moved")
    (tmp_path / "moved" / "final.json").unlink()
    shutil.rmtree(tmp_path / "moved" / "checkpoints" / "4")
    capsys.readouterr()
    final = train(
        _experiment(tokens, mesh=config.Mesh(1, 1, 4, 2), **sections),
        str(tmp_path / "moved"),
    )
    assert "restored step 2" in capsys.readouterr().out
    whole, moved = _lines(tmp_path / "whole"), _lines(tmp_path / "moved")
    assert [line["step"] for line in whole] == [1, 2, 3, 4]
    assert [line["step"] for line in moved] == [1, 2, 3, 4]
    assert moved[:2] == whole[:2]
    assert moved[2:] != whole[2:]
    for name in (
        "loss",
        "auxiliary_loss",
        "router/load_balance_loss",
        "router/z_loss",
        "variance/residual",
    ):
        np.testing.assert_allclose(
            [line[name] for line in moved],
            [line[name] for line in whole],
            rtol=1e-4,
            err_msg=name,
        )
    for line in moved:
        assert all(len(line[name]) == 3 for name in line if name.startswith("router/"))
        assert {f"router/{name}" for name in ROUTER} <= set(line)
        assert line["router/dropped"] == [0, 0, 0]
    assert final["loss"] == pytest.approx(
        json.loads((tmp_path / "whole" / "final.json").read_text())["loss"], rel=1e-4
    )


def test_metrics_have_the_promised_names(tokens, tmp_path, monkeypatch):
    experiment = _experiment(
        tokens, steps=4, evaluation={"every": 2}, log={"moments_every": 3}
    )
    monkeypatch.chdir(tmp_path.parent)
    final = train(experiment, tmp_path.name)  # a relative path
    lines = _lines(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert [line["first_example"] for line in lines] == [0, 8, 16, 24]
    for line in lines:
        assert {
            "loss",
            "perplexity",
            "lr",
            "grad_norm",
            "tokens",
            "variance/final_norm",
            "skipped_updates",
        } <= set(line)
        for name in (
            "variance/residual",
            "variance/attention",
            "variance/ffn",
            "norm/attention",
            "norm/ffn",
            "norm/gradient",
            "norm/parameter",
        ):
            assert len(line[name]) == 3
        assert line["perplexity"] == pytest.approx(np.exp(line["loss"]), rel=1e-4)
    with_moments = ["moments/residual/kurtosis" in line for line in lines]
    assert with_moments == [False, False, True, False]
    with_evaluation = ["evaluation/loss" in line for line in lines]
    assert with_evaluation == [False, True, False, False]
    assert {
        "loss",
        "perplexity",
        "bits_per_byte",
        "tokens",
        "seconds",
        "tokens_per_second",
        "flops",
        "mfu",
    } <= set(final)
    assert final["mfu"] is None
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["mesh"] == {"data": 1, "fsdp": 8, "expert": 1, "tensor": 1}
    assert (
        config.from_dict(read_record(epath.Path(tmp_path) / "config.json"))
        == experiment
    )
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_changed_identity_is_refused_and_named(tokens, tmp_path):
    experiment = _experiment(tokens, steps=3)
    train(experiment, str(tmp_path))
    before = _files(tmp_path)
    with pytest.raises(ConfigError, match=r"optimizer\.peak_lr was 0\.003, is 0\.1"):
        train(
            dataclasses.replace(experiment, optimizer=config.Optimizer(peak_lr=0.1)),
            str(tmp_path),
        )
    assert _files(tmp_path) == before
    same = dataclasses.replace(
        experiment,
        mesh=config.Mesh(2, 2, 1, 2),
        execution=config.Execution(accumulation=2),
    )
    assert train(same, str(tmp_path))["steps"] == 3


def test_a_run_that_lost_its_manifest_or_its_checkpoints_is_not_begun_again(
    tokens, tmp_path
):
    """Neither under another identity nor from step 1; nothing that is left is changed."""
    experiment = _experiment(tokens, steps=4, checkpoint={"every": 2})
    final = train(experiment, str(tmp_path / "run"))
    assert final["skipped_updates"] == 0
    faster = dataclasses.replace(experiment, optimizer=config.Optimizer(peak_lr=0.1))
    for lost, wanted, sentence in (
        (
            ["manifest.json"],
            faster,
            r"holds checkpoints, metrics\.jsonl, final\.json of a run, but no manifest\.json",
        ),
        (
            ["final.json", "checkpoints"],
            experiment,
            r"/checkpoints is missing or empty, .*: mount it or put it back",
        ),
    ):
        broken = tmp_path / lost[0]
        shutil.copytree(tmp_path / "run", broken)
        for name in lost:
            (shutil.rmtree if (broken / name).is_dir() else os.unlink)(broken / name)
        before = _files(broken)
        with pytest.raises(ConfigError, match=sentence):
            train(wanted, str(broken))
        assert _files(broken) == before
    changed = read_record(epath.Path(tmp_path) / "run" / "final.json") | {
        "identity": "another"
    }
    write_record(epath.Path(tmp_path) / "run" / "final.json", changed)
    with pytest.raises(
        ConfigError, match=r"final\.json is of another run than .*manifest\.json"
    ):
        train(experiment, str(tmp_path / "run"))


def test_a_run_most_of_whose_updates_were_left_out_has_diverged(tokens, tmp_path):
    experiment = _experiment(
        tokens,
        steps=5,
        optimizer={"peak_lr": 1e30},
        schedule={"kind": "constant", "warmup_steps": 0},
        execution={"max_skipped_updates": 10},
    )
    problem = "^4 of 5 updates were not finite, so this is no trained model"
    with pytest.raises(Diverged, match=rf"{problem}: lower optimizer\.peak_lr$"):
        train(experiment, str(tmp_path))
    assert not (tmp_path / "final.json").exists()


def test_a_second_live_process_is_turned_away_before_it_writes(tokens, tmp_path):
    experiment = _experiment(tokens)
    with claim(RunDir(epath.Path(tmp_path))):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(Fenced, match="another process"):
            train(experiment, str(tmp_path))
        assert sorted(tmp_path.rglob("*")) == before


def test_an_overtaken_attempt_stops_before_its_next_commit(
    tokens, tmp_path, monkeypatch
):
    """As on object stores, which have no lock: a newer one appears while it runs."""
    experiment = _experiment(tokens, steps=4, checkpoint={"every": 4})
    begun = evaluator

    def overtaken(*args):
        (tmp_path / "attempts" / "0002.json").write_text("{}")
        return begun(*args)

    monkeypatch.setattr("sparsecod_jax.train.loop.evaluator", overtaken)
    with pytest.raises(Fenced, match="attempt 2 took over"):
        train(experiment, str(tmp_path))
    assert not list((tmp_path / "checkpoints").iterdir())
    assert _status(tmp_path) == "running"


def test_too_many_updates_that_are_not_finite_end_the_run(tokens, tmp_path):
    experiment = _experiment(
        tokens,
        steps=30,
        optimizer={"peak_lr": 1e30},
        schedule={"kind": "constant", "warmup_steps": 0},
        execution={"max_skipped_updates": 3},
    )
    with pytest.raises(Diverged, match=r"lower optimizer\.peak_lr"):
        train(experiment, str(tmp_path))
    assert _status(tmp_path) == "diverged"
    last = _lines(tmp_path)[-1]
    assert last["skipped_updates"] == 4
    assert last["grad_norm"] is None
    assert "grad_norm" in last["nonfinite"]


@pytest.mark.parametrize(
    ("sections", "sentence"),
    [
        (
            {"data": {"path": "nowhere"}},
            r"run `sparsecod data --source=sotu --tokenizer=bpe --vocab_size=304 --out=nowhere`",
        ),
        ({"mesh": config.Mesh(3, 1, 1, 1)}, r"does not multiply to the 8 devices"),
        (
            {"global_batch": 12, "mesh": config.Mesh(1, 8, 1, 1)},
            r"global_batch / execution.accumulation=12 is not a multiple of 8",
        ),
        ({"model": {"vocab_size": 296}}, r"smaller than the tokenizer's 300"),
        ({"data": {"seq_len": 10**6}}, r"data.seq_len=1000000 is longer than"),
        (
            {
                "execution": {"attention": "cudnn"},
                "model": {"compute_dtype": "bfloat16"},
            },
            r"needs an NVIDIA GPU, this is a cpu",
        ),
        (
            {"model": {"compute_dtype": "float64"}},
            r"set the environment variable JAX_ENABLE_X64=1",
        ),
        ({"mesh": config.Mesh(1, 1, 1, 8)}, r"model.n_heads=4 is not a multiple of 8"),
    ],
)
def test_what_devices_and_data_rule_out_is_refused_before_anything_is_written(
    tokens, tmp_path, sections, sentence
):
    sections["data"] = {"path": str(tokens), **sections.get("data", {})}
    with pytest.raises(ConfigError, match=sentence):
        train(tiny_configs.experiment(**sections), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_an_overtaken_attempt_that_fails_leaves_the_status_to_the_newer_one(
    tokens, tmp_path, monkeypatch
):
    def fail(*args):  # before anything else that asks who owns the directory
        (tmp_path / "attempts" / "0002.json").write_text("{}")
        (tmp_path / "status.json").write_text('{"status": "running", "by": 2}')
        raise RuntimeError("after it was overtaken")

    monkeypatch.setattr(loop, "evaluator", fail)
    with pytest.raises(Fenced, match=r"attempt 2 took over"):
        train(_experiment(tokens, steps=3), str(tmp_path))
    assert json.loads((tmp_path / "status.json").read_text()) == {
        "status": "running",
        "by": 2,
    }


def test_a_run_that_another_one_came_before_is_refused_after_its_claim(
    tokens, tmp_path, monkeypatch
):
    train(_experiment(tokens, steps=3), str(tmp_path / "other"))
    written = (tmp_path / "other" / "config.json").read_bytes()

    @contextlib.contextmanager
    def late(run):
        shutil.copytree(tmp_path / "other", run.path)
        with claim(run) as attempt:
            yield attempt

    monkeypatch.setattr(loop, "claim", late)
    with pytest.raises(ConfigError, match=r"holds another run \(steps was 3, is 4\)"):
        train(_experiment(tokens, steps=4), str(tmp_path / "run"))
    assert (tmp_path / "run" / "config.json").read_bytes() == written


def test_document_masking_trains(tokens, tmp_path):
    plain_run = train(_experiment(tokens, steps=3), str(tmp_path / "plain"))
    masked = train(
        _experiment(tokens, steps=3, model={"document_masking": True}),
        str(tmp_path / "masked"),
    )
    assert masked["loss"] != plain_run["loss"]
    assert masked["loss"] == pytest.approx(plain_run["loss"], rel=0.05)


def test_room_is_looked_for_when_the_save_before_is_done(tokens, tmp_path, monkeypatch):
    """Otherwise a disk would have to hold one checkpoint more than are kept."""
    sync, checkpoints = files.sync_tree, []

    def slow_sync(folder):
        time.sleep(0.3)
        sync(folder)

    def check_room(folder, tree):
        names = os.listdir(folder) if folder.exists() else []
        checkpoints.append(sorted(names))

    monkeypatch.setattr(files, "sync_tree", slow_sync)
    monkeypatch.setattr(start, "check_room", check_room)
    monkeypatch.setattr(loop, "check_room", check_room)
    train(_experiment(tokens, checkpoint={"every": 2, "keep": 1}), str(tmp_path))
    assert checkpoints == [[], [], ["2"], ["4"]]


def test_a_run_that_lacks_only_its_evaluation_needs_no_room_and_a_finished_one_nothing(
    tokens, tmp_path, monkeypatch
):
    experiment = _experiment(tokens)
    whole = train(experiment, str(tmp_path))
    run = RunDir(epath.Path(tmp_path))
    run.final.unlink()
    monkeypatch.setattr(
        shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10, 10, 0)
    )  # pyright: ignore
    assert train(experiment, str(tmp_path))["loss"] == whole["loss"]

    def read_only(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system", str(run.status))

    monkeypatch.setattr(RunDir, "set_status", read_only)
    assert train(experiment, str(tmp_path))["loss"] == whole["loss"]
