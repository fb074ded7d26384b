"""What a run needs on devices that are not here: on the eight CPU devices as if they were rented, and compiled for TPUs and GPUs."""

import dataclasses
import importlib.util
import json
import re
from pathlib import Path
from unittest.mock import Mock

import jax
import pytest

from sparsecod_jax import config
from sparsecod_jax.cli import main
from sparsecod_jax.config import counts
from sparsecod_jax.config.load import load_experiment
from sparsecod_jax.model import attention, block, layers, loss, transformer
from sparsecod_jax.parallel import devices
from sparsecod_jax.plan import plan, topologies
from sparsecod_jax.plan.topologies import Topology
from sparsecod_jax.train.loop import train
from sparsecod_jax.train.step import Program
from tests.support import tiny_configs
from tests.support.compilers import needs_gpu_compiler, needs_tpu_compiler

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20
GENEROUS = 64 * 2**30


@pytest.fixture
def rent(monkeypatch):
    """Lets the CPU devices here be known, by their memory, and be planned for as "here"."""

    def known(memory, count=8, slices=1):
        chip = devices.Chip("cpu", "cpu", "cpu", peak_flops=1e12, memory=memory)
        monkeypatch.setattr(devices, "CHIPS", (chip,))
        monkeypatch.setattr(
            topologies,
            "find",
            lambda name: Topology(name, jax.devices()[:count], slices, chip),
        )

    return known


def test_a_plan_of_a_tiny_run(rent):
    rent(GENEROUS)
    experiment = tiny_configs.experiment(
        execution={"accumulation": 0, "attention": "auto"}
    )
    found = plan.plan(experiment, topologies.find("here"), 0.25)
    assert json.loads(json.dumps(found)) == found
    assert (
        found["topology"],
        found["devices"],
        found["slices"],
        found["device_kind"],
    ) == ("here", 8, 1, "cpu")
    assert found["mesh"] == {"data": 1, "fsdp": 8, "expert": 1, "tensor": 1}
    assert (found["execution"]["accumulation"], found["execution"]["attention"]) == (
        1,
        "xla",
    )
    assert found["placement"].startswith(
        "mesh fsdp 8 (FSDP within a slice, at most 32 ways); microbatches 1 of 1 rows a device; "
    )
    sizes = counts.parameters(experiment.model)
    assert found["parameters"] == dataclasses.asdict(sizes)
    assert (
        found["checkpoint_bytes"] == 3 * 4 * sizes.total + 3 * 4
    )  # weights, two moments; step, skipped, Adam's count
    assert found["tokens"] == 6 * 8 * 32
    flops = counts.flops_per_token(experiment.model, 32) * 8 * 32
    assert (found["flops_per_step"], found["assumed_mfu"]) == (flops, 0.25)
    assert found["step_seconds"] == pytest.approx(flops / (8 * 1e12 * 0.25))
    assert found["chip_hours"] == pytest.approx(6 * flops / (1e12 * 0.25) / 3600)
    assert found["fits"]
    assert "change" not in found
    memory = found["memory"]
    assert (
        found["checkpoint_bytes"] / 8
        < memory["arguments"]
        < found["checkpoint_bytes"] / 4
    )
    assert memory["peak"] == memory["arguments"] + memory["temporaries"]
    assert memory["limit"] == GENEROUS
    assert {"all-gather", "all-reduce"} <= set(found["collectives"])
    with_moments = plan.plan(
        dataclasses.replace(experiment, log=config.Log(moments_every=2)),
        topologies.find("here"),
        0.25,
    )
    assert (
        with_moments["memory"]["temporaries"] > memory["temporaries"]
    )  # the costlier of the two programs counts
    assert (
        with_moments["collectives"] == found["collectives"]
    )  # those of an ordinary step


def _too_large(rent, experiment, memory, count=1):
    """The plan of an experiment for CPU devices on which it does not fit; what it proposes has been applied and fits."""
    rent(memory, count)
    found = plan.plan(experiment, topologies.find("here"), 0.4)
    assert not found["fits"]
    assert re.fullmatch(
        r"arguments and temporaries take \d\.\d of \d\.\d GiB", found["reason"]
    )
    assert (
        f"does not fit: {found['reason']}\n  smallest change: {found['change']}\n"
        in plan.report(found)
    )
    changed = load_experiment(
        str(ROOT / "configs/smoke.py"),
        [*tiny_configs.flags(experiment), *found["change"].split()],
    )
    assert plan.plan(changed, topologies.find("here"), 0.4)["fits"]
    return found["change"]


def _needs(rent, experiment, count=1):
    rent(GENEROUS, count)
    return plan.plan(experiment, topologies.find("here"), 0.4)["memory"]


def test_what_does_not_fit_is_a_finding_and_smaller_microbatches_the_first_change(rent):
    experiment = tiny_configs.experiment(model={"n_layers": 12}, data={"seq_len": 128})
    memory = _needs(rent, experiment)
    assert (
        _too_large(rent, experiment, 0.9 * memory["temporaries"] + memory["arguments"])
        == "--config.execution.accumulation=2"
    )


def test_an_error_that_begins_with_a_title_says_what_ran_out(rent, monkeypatch):
    error = "RESOURCE_EXHAUSTED: E1001: Vmem:\nRan out of memory for %dot.9 = bf16[8,8]{1,0} custom-call()\nmore"
    rent(GENEROUS, count=1)
    monkeypatch.setattr(
        Program, "lower", Mock(side_effect=jax.errors.JaxRuntimeError(error))
    )
    found = plan.plan(tiny_configs.experiment(), topologies.find("here"), 0.4)
    assert (
        found["reason"]
        == "RESOURCE_EXHAUSTED: E1001: Vmem: Ran out of memory for %dot.9"
    )


def test_full_remat_is_the_next_change(rent):
    experiment = tiny_configs.experiment(
        model={"n_layers": 12},
        data={"seq_len": 128},
        global_batch=1,
        execution={"remat": "none"},
    )
    memory = _needs(rent, experiment)
    change = "--config.execution.accumulation=1 --config.execution.remat=full"
    assert (
        _too_large(rent, experiment, 0.5 * memory["temporaries"] + memory["arguments"])
        == change
    )


def test_replicas_that_become_shards_are_the_last_change(rent):
    experiment = tiny_configs.experiment(model={"d_model": 64}, mesh={"data": 8})
    memory = _needs(rent, experiment, 8)
    change = (
        "--config.mesh.data=4 --config.mesh.fsdp=2 --config.execution.accumulation=1"
    )
    assert (
        _too_large(
            rent, experiment, 0.8 * memory["arguments"] + memory["temporaries"], 8
        )
        == change
    )


def test_where_nothing_helps_a_larger_slice_is_proposed(rent):
    rent(1000, count=1)
    found = plan.plan(
        tiny_configs.experiment(global_batch=1), topologies.find("here"), 0.4
    )
    assert not found["fits"]
    assert (
        found["change"]
        == "none of microbatches, a loop over blocks, remat and fsdp makes it fit: take a larger slice"
    )


@pytest.mark.parametrize("needed", [2, 4, 8, 16, 32, 64, 128])
def test_the_smallest_change_is_found_by_few_compilations(rent, monkeypatch, needed):
    """Among 2, 4, ... 64 microbatches; none is enough where 128 are needed, and full remat then halves the need."""
    rent(GENEROUS, count=1)
    tried = []

    def compiled(program, topology):
        tried.append(program.layout)
        return {
            "fits": tried[-1].microbatches
            * (2 if tried[-1].kernels.remat == "full" else 1)
            >= needed
        }

    monkeypatch.setattr(plan, "compiled", compiled)
    change = plan.smallest_change(
        tiny_configs.experiment(global_batch=64, execution={"remat": "none"}),
        topologies.find("here"),
    )
    assert change == (
        f"--config.execution.accumulation={needed}"
        if needed <= 64
        else "--config.execution.accumulation=64 --config.execution.remat=full"
    )
    assert len(tried) <= (4 if needed <= 64 else 5)


@pytest.mark.parametrize(
    ("remat", "enough", "fsdp", "change"),
    [
        ("none", "none", 1, "execution.accumulation=1 execution.unroll=False"),
        (
            "none",
            "full",
            1,
            "execution.accumulation=1 execution.unroll=False execution.remat=full",
        ),
        ("full", "full", 1, "execution.accumulation=1 execution.unroll=False"),
        (
            "none",
            "full",
            2,
            "mesh.data=4 mesh.fsdp=2 execution.unroll=False execution.remat=full execution.accumulation=1",
        ),
    ],
)
def test_blocks_that_were_unrolled_are_looped_over_before_full_remat(
    rent, monkeypatch, remat, enough, fsdp, change
):
    """On a CPU a loop does not take less, so here memory is what was seen on GPUs."""
    rent(GENEROUS)

    def compiled(program, topology):
        kernels, mesh = program.layout.kernels, program.layout.mesh
        return {
            "fits": not kernels.unroll and kernels.remat == enough and mesh.fsdp >= fsdp
        }

    monkeypatch.setattr(plan, "compiled", compiled)
    unrolled = tiny_configs.experiment(
        mesh={"data": 8}, execution={"remat": remat, "unroll": True}
    )
    assert plan.smallest_change(unrolled, topologies.find("here")) == " ".join(
        f"--config.{each}" for each in change.split()
    )


def test_plan_and_train_lower_to_the_same_text(rent, tokens, tmp_path, monkeypatch):
    rent(GENEROUS)
    lower, texts = Program.lower, []

    def recorded(program, *, with_moments):
        lowered = lower(program, with_moments=with_moments)
        texts.append((with_moments, lowered.as_text()))
        return lowered

    monkeypatch.setattr(Program, "lower", recorded)
    chosen = {"accumulation": 0, "attention": "auto"}
    sections = {
        "data": {"path": str(tokens)},
        "execution": chosen,
        "evaluation": {"max_tokens": 256},
        "log": {"moments_every": 2},
    }
    experiment = tiny_configs.experiment(**sections)
    train(experiment, str(tmp_path / "run"))
    trained = dict(texts)
    texts.clear()
    plan.plan(experiment, topologies.find("here"), 0.4)
    assert set(trained) == {False, True}
    assert dict(texts) == trained


def _refused(capsys, *words):
    """What the command line says when it refuses to plan."""
    with pytest.raises(SystemExit) as ended:
        main(["plan", f"--config={ROOT}/configs/smoke.py", *words])
    said = capsys.readouterr()
    assert (ended.value.code, said.out, said.err.count("\n")) == (78, "", 1)
    return said.err.removeprefix("sparsecod plan: ").strip()


def test_mistakes_are_refused_in_one_sentence(capsys, tmp_path, monkeypatch):
    out = f"--out={tmp_path}/plans.json"
    assert _refused(capsys, "--topology=v5p:4", out).startswith(
        "--topology=v5p:4 is not known: write it like v4:2x2x2, "
    )
    assert (
        _refused(capsys, "--topology=v5e:2x2", "--mfu=nan", out)
        == "--mfu=nan is not finite: give a number"
    )
    for mfu in ("0", "1.5", "-0.4"):
        sentence = f"--mfu={float(mfu)} is not a share of the peak: use a number above 0 and up to 1, such as 0.4"
        assert _refused(capsys, "--topology=v5e:2x2", f"--mfu={mfu}", out) == sentence
    installed = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda wanted: None if wanted == "libtpu" else installed(wanted),
    )
    assert (
        _refused(capsys, "--topology=v5e:2x2", out)
        == "compiling for a TPU needs its compiler: pip install 'sparsecod-jax[tpu]'"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "place", ["folder", "absent/plans.json", "notes.json", "text.txt"]
)
def test_a_place_for_plans_is_looked_at_first(place, capsys, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "notes.json").write_text('{"mine": 1}')
    (tmp_path / "text.txt").write_text("mine")
    before = {
        file.name: file.is_file() and file.read_bytes() for file in tmp_path.iterdir()
    }
    _refused(capsys, "--topology=h100:1", f"--out={tmp_path / place}")
    assert {
        file.name: file.is_file() and file.read_bytes() for file in tmp_path.iterdir()
    } == before


def test_plans_are_printed_and_written(rent, capsys, tmp_path):
    rent(GENEROUS, count=1)
    flags = tiny_configs.flags(tiny_configs.experiment(model={"n_layers": 1}))
    main(
        [
            "plan",
            f"--config={ROOT}/configs/smoke.py",
            "--topology=here",
            "--topology=there",
            f"--out={tmp_path}/plans.json",
            *flags,
        ]
    )
    printed = capsys.readouterr().out
    assert re.findall(r"^(\w+): 1 x cpu$", printed, re.MULTILINE) == ["here", "there"]
    assert printed.count("fits: peak 0.00 of 64.00 GiB a chip") == 2
    assert [
        found["topology"] for found in json.loads((tmp_path / "plans.json").read_text())
    ] == ["here", "there"]


def _paper(name, *overrides):
    """A published config, made small, its costly statistics left out; the vocabulary stays, as most memory goes by it."""
    flags = [
        "model.d_model=512",
        "model.n_heads=4",
        "model.n_layers=2",
        "log.moments_every=0",
        *overrides,
    ]
    return load_experiment(
        f"{ROOT}/configs/{name}.py:paper", [f"--config.{flag}" for flag in flags]
    )


def _dense():
    return _paper("dense_1b", "model.d_ff=2048")


def _mixture(*overrides):
    sizes = {
        "model.d_ff": 512,
        "model.d_shared": 512,
        "model.n_experts": 4,
        "model.top_k": 2,
        "data.seq_len": 256,
        "global_batch": 64,
    }
    return _paper(
        "moe_400m_2b", *(f"{name}={size}" for name, size in sizes.items()), *overrides
    )


def _check(found, shards, temporaries, kinds):
    """State and batch are spread over the shards; temporaries stay below so many bytes; nothing else is sent than is meant to be."""
    assert found["fits"]
    assert found["memory"]["arguments"] < 1.02 * found["checkpoint_bytes"] / shards
    assert found["memory"]["temporaries"] < temporaries
    assert set(found["collectives"]) == kinds


@needs_tpu_compiler
def test_a_dense_model_on_16_tpus():
    """Parameters are gathered and gradients scattered; some of it piece by piece, beside the products, by permutes."""
    found = plan.plan(_dense(), topologies.find("v5e:4x4"), 0.4)
    assert found["mesh"] == {"data": 1, "fsdp": 16, "expert": 1, "tensor": 1}
    assert found["execution"]["attention"] == "splash"
    _check(found, 16, 1000 * MIB, {"all-gather", "all-reduce", "collective-permute"})


@needs_tpu_compiler
def test_a_mixture_on_two_slices():
    """Within a slice parameters are gathered and gradients scattered; between slices goes each gradient, once."""
    found = plan.plan(_mixture(), topologies.find("v5p:2x2x1*2"), 0.4)
    assert found["mesh"] == {"data": 2, "fsdp": 4, "expert": 1, "tensor": 1}
    _check(found, 4, 850 * MIB, {"all-gather", "all-reduce", "reduce-scatter", "send"})
    gradients = (
        4 * found["parameters"]["total"] / 4
    )  # bytes of float32, spread over fsdp
    assert found["collectives"]["send"]["bytes"] < 1.05 * gradients


ON_GPUS = {"all-gather", "all-reduce", "reduce-scatter"}


@needs_gpu_compiler
def test_a_dense_model_on_the_gpus_of_a_host():
    found = plan.plan(_dense(), topologies.find("h100:8"), 0.4)
    assert found["mesh"] == {"data": 1, "fsdp": 8, "expert": 1, "tensor": 1}
    assert found["execution"]["attention"] == "cudnn"
    _check(found, 8, 1450 * MIB, ON_GPUS)


@needs_gpu_compiler
def test_a_mixture_on_the_gpus_of_a_host():
    """With the kernels that `train` uses there: every row by every expert would take twice the memory."""
    found = plan.plan(
        _mixture("model.n_experts=16", "data.seq_len=1024"),
        topologies.find("h100:8"),
        0.4,
    )
    assert found["mesh"] == {"data": 1, "fsdp": 8, "expert": 1, "tensor": 1}
    _check(found, 8, 1400 * MIB, ON_GPUS)


@needs_gpu_compiler
def test_a_lost_constraint_is_seen(monkeypatch):
    for module in (attention, block, layers, transformer):
        monkeypatch.setattr(module, "constrain", lambda x, *axes: x)
    found = plan.plan(_dense(), topologies.find("h100:8"), 0.4)
    with pytest.raises(AssertionError, match="all-to-all"):
        _check(found, 8, 1450 * MIB, ON_GPUS)


@needs_gpu_compiler
def test_logits_of_all_positions_are_seen(monkeypatch):
    monkeypatch.setattr(loss, "LOGITS", 2**40)
    found = plan.plan(_dense(), topologies.find("h100:8"), 0.4)
    with pytest.raises(AssertionError, match=rf"^assert \d+ < {1450 * MIB}"):
        _check(found, 8, 1450 * MIB, ON_GPUS)


@needs_tpu_compiler
def test_memory_that_a_compiler_runs_out_of_is_a_finding():
    sizes = {
        "model.d_model": 128,
        "model.n_heads": 1,
        "model.d_ff": 256,
        "model.n_layers": 32,
        "model.vocab_size": 1024,
    }
    flags = [
        *(f"{name}={size}" for name, size in sizes.items()),
        "data.seq_len=4096",
        "global_batch=1024",
        "execution.accumulation=1",
    ]
    found = plan.plan(_paper("dense_1b", *flags), topologies.find("v5e:2x2"), 0.4)
    assert not found["fits"]
    assert re.fullmatch(
        r"RESOURCE_EXHAUSTED: [^\n]*\(2\d\.\d+G\) exceeds available HBM \(15\.75G\)\.( HLO .*)?",
        found["reason"],
    )
    assert found["change"] == "--config.execution.accumulation=2"
