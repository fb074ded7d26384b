"""What a run needs on devices that are not here.

Planned for the eight CPU devices as if they were rented, and compiled for TPUs and GPUs.
"""

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
from sparsecod_jax.plan import fit, topologies
from sparsecod_jax.plan.findings import Compiled, Memory, Plan
from sparsecod_jax.plan.plan import make_plan, report
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
    """Lets the CPU devices be a known chip with so much memory, planned for as "here"."""

    def as_chips(memory, count=8, slices=1):
        chip = devices.Chip("cpu", "cpu", "cpu", peak_flops=1e12, memory=memory)

        def find(name):
            return Topology(name, jax.devices()[:count], slices, chip)

        monkeypatch.setattr(devices, "CHIPS", (chip,))
        monkeypatch.setattr(topologies, "find", find)

    return as_chips


def _plan(experiment, topology="here", mfu=0.4) -> Plan:
    return make_plan(experiment, topologies.find(topology), mfu)


def test_a_plan_of_a_tiny_run(rent):
    rent(GENEROUS)
    experiment = tiny_configs.experiment(
        execution={"accumulation": 0, "attention": "auto"}
    )
    plan = _plan(experiment, mfu=0.25)
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    assert (plan.topology, plan.devices, plan.slices) == ("here", 8, 1)
    assert plan.device_kind == "cpu"
    assert plan.mesh == config.Mesh(data=1, fsdp=8, expert=1, tensor=1)
    assert (plan.execution.accumulation, plan.execution.attention) == (1, "xla")
    assert plan.placement.startswith(
        "mesh fsdp 8 (FSDP within a slice, at most 32 ways);"
        " microbatches 1 of 1 rows a device; "
    )
    sizes = counts.parameters(experiment.model)
    assert plan.budget.parameters == sizes
    # Weights and two moments in float32; step, skipped steps and Adam's count.
    checkpoint_bytes = 3 * 4 * sizes.total + 3 * 4
    assert plan.compiled.checkpoint_bytes == checkpoint_bytes
    assert plan.budget.tokens == 6 * 8 * 32
    flops = counts.flops_per_token(experiment.model, 32) * 8 * 32
    assert plan.budget.flops_per_step == flops
    assert plan.budget.assumed_mfu == 0.25
    assert plan.budget.step_seconds == pytest.approx(flops / (8 * 1e12 * 0.25))
    chip_hours = 6 * flops / (1e12 * 0.25) / 3600
    assert plan.budget.chip_hours == pytest.approx(chip_hours)
    assert plan.compiled.fits
    assert plan.change is None
    memory = plan.compiled.memory
    assert memory
    assert checkpoint_bytes / 8 < memory.arguments < checkpoint_bytes / 4
    assert memory.peak == memory.arguments + memory.temporaries
    assert memory.limit == GENEROUS
    assert {"all-gather", "all-reduce"} <= set(plan.compiled.collectives or {})


def test_the_costlier_of_two_programs_counts(rent):
    rent(GENEROUS)
    experiment = tiny_configs.experiment()
    without = _plan(experiment).compiled
    measured = dataclasses.replace(experiment, log=config.Log(moments_every=2))
    with_moments = _plan(measured).compiled
    assert without.memory
    assert with_moments.memory
    assert with_moments.memory.temporaries > without.memory.temporaries
    assert with_moments.collectives == without.collectives  # of an ordinary step


def test_a_plan_survives_its_json():
    """The keys and their order are those of docs/plans.json."""
    text = (ROOT / "docs" / "plans.json").read_text()
    for record in json.loads(text).values():
        again = Plan.from_dict(record).to_dict()
        again |= {name: record[name] for name in record if name not in again}
        # Plans of before that setting existed lack it.
        if "unroll" not in record["execution"]:
            assert again["execution"].pop("unroll") is False
        assert json.dumps(again) == json.dumps(record)


def _too_large(rent, experiment, memory, count=1):
    """The change proposed for CPU devices with too little memory, once it is seen to fit."""
    rent(memory, count)
    plan = _plan(experiment)
    reason = plan.compiled.reason
    assert not plan.compiled.fits
    assert reason
    assert plan.change
    assert re.fullmatch(r"arguments and temporaries take \d\.\d of \d\.\d GiB", reason)
    verdict = f"does not fit: {reason}\n  smallest change: {plan.change}\n"
    assert verdict in report(plan)
    flags = [*tiny_configs.flags(experiment), *plan.change.split()]
    changed = load_experiment(str(ROOT / "configs/smoke.py"), flags)
    assert _plan(changed).compiled.fits
    return plan.change


def _needs(rent, experiment, count=1) -> Memory:
    rent(GENEROUS, count)
    memory = _plan(experiment).compiled.memory
    assert memory
    return memory


def test_what_does_not_fit_is_a_finding_and_smaller_microbatches_the_first_change(rent):
    experiment = tiny_configs.experiment(model={"n_layers": 12}, data={"seq_len": 128})
    memory = _needs(rent, experiment)
    too_little = 0.9 * memory.temporaries + memory.arguments
    change = "--config.execution.accumulation=2"
    assert _too_large(rent, experiment, too_little) == change


def test_an_error_that_begins_with_a_title_says_what_ran_out(rent, monkeypatch):
    error = (
        "RESOURCE_EXHAUSTED: E1001: Vmem:\n"
        "Ran out of memory for %dot.9 = bf16[8,8]{1,0} custom-call()\nmore"
    )
    rent(GENEROUS, count=1)
    out_of_memory = Mock(side_effect=jax.errors.JaxRuntimeError(error))
    monkeypatch.setattr(Program, "lower", out_of_memory)
    reason = "RESOURCE_EXHAUSTED: E1001: Vmem: Ran out of memory for %dot.9"
    assert _plan(tiny_configs.experiment()).compiled.reason == reason


def test_full_remat_is_the_next_change(rent):
    experiment = tiny_configs.experiment(
        model={"n_layers": 12},
        data={"seq_len": 128},
        global_batch=1,
        execution={"remat": "none"},
    )
    memory = _needs(rent, experiment)
    too_little = 0.5 * memory.temporaries + memory.arguments
    change = "--config.execution.accumulation=1 --config.execution.remat=full"
    assert _too_large(rent, experiment, too_little) == change


def test_replicas_that_become_shards_are_the_last_change(rent):
    experiment = tiny_configs.experiment(model={"d_model": 64}, mesh={"data": 8})
    memory = _needs(rent, experiment, 8)
    too_little = 0.8 * memory.arguments + memory.temporaries
    change = (
        "--config.mesh.data=4 --config.mesh.fsdp=2 --config.execution.accumulation=1"
    )
    assert _too_large(rent, experiment, too_little, 8) == change


def test_where_nothing_helps_a_larger_slice_is_proposed(rent):
    rent(1000, count=1)
    plan = _plan(tiny_configs.experiment(global_batch=1))
    assert not plan.compiled.fits
    assert plan.change == (
        "none of microbatches, a loop over blocks, remat and fsdp makes it fit:"
        " take a larger slice"
    )


def _pretend(monkeypatch, fits) -> list:
    """Lets `fits`, by layout, decide instead of a compiler; returns the layouts tried."""
    tried = []

    def compile_programs(program, topology):
        tried.append(program.layout)
        return Compiled(checkpoint_bytes=0, fits=fits(program.layout))

    monkeypatch.setattr(fit, "compile_programs", compile_programs)
    return tried


@pytest.mark.parametrize("needed", [2, 4, 8, 16, 32, 64, 128])
def test_the_smallest_change_is_found_by_few_compilations(rent, monkeypatch, needed):
    """Among 2, 4, ... 64 microbatches; where 128 are needed, full remat halves the need."""

    def fits(layout):
        factor = 2 if layout.kernels.remat == "full" else 1
        return layout.microbatches * factor >= needed

    rent(GENEROUS, count=1)
    tried = _pretend(monkeypatch, fits)
    experiment = tiny_configs.experiment(global_batch=64, execution={"remat": "none"})
    change = fit.smallest_change(experiment, topologies.find("here"))
    if needed <= 64:
        assert change == f"--config.execution.accumulation={needed}"
        assert len(tried) <= 4
    else:
        assert change == (
            "--config.execution.accumulation=64 --config.execution.remat=full"
        )
        assert len(tried) <= 5


LOOP = "execution.unroll=False"
LOOP_AND_REMAT = f"{LOOP} execution.remat=full"


@pytest.mark.parametrize(
    ("remat", "enough", "fsdp", "change"),
    [
        ("none", "none", 1, f"execution.accumulation=1 {LOOP}"),
        ("none", "full", 1, f"execution.accumulation=1 {LOOP_AND_REMAT}"),
        ("full", "full", 1, f"execution.accumulation=1 {LOOP}"),
        (
            "none",
            "full",
            2,
            f"mesh.data=4 mesh.fsdp=2 {LOOP_AND_REMAT} execution.accumulation=1",
        ),
    ],
)
def test_blocks_that_were_unrolled_are_looped_over_before_full_remat(
    rent, monkeypatch, remat, enough, fsdp, change
):
    """On a CPU a loop does not take less, so here memory is what was seen on GPUs."""

    def fits(layout):
        kernels = layout.kernels
        is_small = not kernels.unroll and kernels.remat == enough
        return is_small and layout.mesh.fsdp >= fsdp

    rent(GENEROUS)
    _pretend(monkeypatch, fits)
    unrolled = tiny_configs.experiment(
        mesh={"data": 8}, execution={"remat": remat, "unroll": True}
    )
    flags = " ".join(f"--config.{override}" for override in change.split())
    assert fit.smallest_change(unrolled, topologies.find("here")) == flags


def test_plan_and_train_lower_to_the_same_text(rent, tokens, tmp_path, monkeypatch):
    rent(GENEROUS)
    lower = Program.lower
    texts = []

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
    _plan(experiment)
    assert set(trained) == {False, True}
    assert dict(texts) == trained


def _refused(capsys, *words):
    """The message with which the command line refuses to plan."""
    with pytest.raises(SystemExit) as ended:
        main(["plan", f"--config={ROOT}/configs/smoke.py", *words])
    printed = capsys.readouterr()
    assert ended.value.code == 78
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    return printed.err.removeprefix("sparsecod plan: ").strip()


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
        sentence = (
            f"--mfu={float(mfu)} is not a share of the peak:"
            " use a number above 0 and up to 1, such as 0.4"
        )
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


def _files(folder):
    """The content of each file, False for folders."""
    return {
        path.name: path.is_file() and path.read_bytes() for path in folder.iterdir()
    }


@pytest.mark.parametrize(
    "file", ["folder", "absent/plans.json", "notes.json", "text.txt"]
)
def test_the_file_for_plans_is_checked_first(file, capsys, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "notes.json").write_text('{"mine": 1}')
    (tmp_path / "text.txt").write_text("mine")
    before = _files(tmp_path)
    _refused(capsys, "--topology=h100:1", f"--out={tmp_path / file}")
    assert _files(tmp_path) == before


def test_plans_are_printed_and_written(rent, capsys, tmp_path):
    rent(GENEROUS, count=1)
    config_file = f"--config={ROOT}/configs/smoke.py"
    flags = tiny_configs.flags(tiny_configs.experiment(model={"n_layers": 1}))
    out = tmp_path / "plans.json"
    where = ["--topology=here", "--topology=there", f"--out={out}"]
    main(["plan", config_file, *where, *flags])
    printed = capsys.readouterr().out
    assert re.findall(r"^(\w+): 1 x cpu$", printed, re.MULTILINE) == ["here", "there"]
    assert printed.count("fits: peak 0.00 of 64.00 GiB per chip") == 2
    written = json.loads(out.read_text())
    assert [plan["topology"] for plan in written] == ["here", "there"]


def _paper(name, *overrides):
    """A published config, made small and without its costly statistics.

    The vocabulary stays, as most memory goes by it.
    """
    flags = [
        "model.d_model=512",
        "model.n_heads=4",
        "model.n_layers=2",
        "log.moments_every=0",
        *overrides,
    ]
    flags = [f"--config.{flag}" for flag in flags]
    return load_experiment(f"{ROOT}/configs/{name}.py:paper", flags)


def _dense():
    return _paper("dense_1b", "model.d_ff=2048")


def _moe(*overrides):
    sizes = {
        "model.d_ff": 512,
        "model.d_shared": 512,
        "model.n_experts": 4,
        "model.top_k": 2,
        "data.seq_len": 256,
        "global_batch": 64,
    }
    settings = [f"{name}={size}" for name, size in sizes.items()]
    return _paper("moe_400m_2b", *settings, *overrides)


def _check(plan, shards, temporaries, kinds):
    """State and batch are spread over the shards, and only these collectives are there.

    Temporaries stay below so many bytes.
    """
    compiled = plan.compiled
    assert compiled.fits
    assert compiled.memory.arguments < 1.02 * compiled.checkpoint_bytes / shards
    assert compiled.memory.temporaries < temporaries
    assert set(compiled.collectives) == kinds


@needs_tpu_compiler
def test_a_dense_model_on_16_tpus():
    """Parameters are gathered and gradients scattered.

    Some of it goes piece by piece, beside the products, by permutes.
    """
    plan = _plan(_dense(), "v5e:4x4")
    assert plan.mesh == config.Mesh(data=1, fsdp=16, expert=1, tensor=1)
    assert plan.execution.attention == "splash"
    _check(plan, 16, 1000 * MIB, {"all-gather", "all-reduce", "collective-permute"})


@needs_tpu_compiler
def test_a_mixture_of_experts_on_two_slices():
    """Within a slice parameters are gathered and gradients scattered.

    Between slices goes each gradient, once.
    """
    plan = _plan(_moe(), "v5p:2x2x1*2")
    assert plan.mesh == config.Mesh(data=2, fsdp=4, expert=1, tensor=1)
    _check(plan, 4, 850 * MIB, {"all-gather", "all-reduce", "reduce-scatter", "send"})
    gradient_bytes = 4 * plan.budget.parameters.total / 4  # float32, spread over fsdp
    assert plan.compiled.collectives
    assert plan.compiled.collectives["send"].bytes < 1.05 * gradient_bytes


ON_GPUS = {"all-gather", "all-reduce", "reduce-scatter"}


@needs_gpu_compiler
def test_a_dense_model_on_the_gpus_of_a_host():
    plan = _plan(_dense(), "h100:8")
    assert plan.mesh == config.Mesh(data=1, fsdp=8, expert=1, tensor=1)
    assert plan.execution.attention == "cudnn"
    _check(plan, 8, 1450 * MIB, ON_GPUS)


@needs_gpu_compiler
def test_a_mixture_of_experts_on_the_gpus_of_a_host():
    """With the kernels that `train` uses there.

    Every row by every expert would take twice the memory.
    """
    experiment = _moe("model.n_experts=16", "data.seq_len=1024")
    plan = _plan(experiment, "h100:8")
    assert plan.mesh == config.Mesh(data=1, fsdp=8, expert=1, tensor=1)
    _check(plan, 8, 1400 * MIB, ON_GPUS)


@needs_gpu_compiler
def test_a_lost_constraint_is_seen(monkeypatch):
    for module in (attention, block, layers, transformer):
        monkeypatch.setattr(module, "constrain", lambda x, *axes: x)
    plan = _plan(_dense(), "h100:8")
    with pytest.raises(AssertionError, match="all-to-all"):
        _check(plan, 8, 1450 * MIB, ON_GPUS)


@needs_gpu_compiler
def test_logits_of_all_positions_are_seen(monkeypatch):
    monkeypatch.setattr(loss, "LOGITS", 2**40)
    plan = _plan(_dense(), "h100:8")
    with pytest.raises(AssertionError, match=rf"^assert \d+ < {1450 * MIB}"):
        _check(plan, 8, 1450 * MIB, ON_GPUS)


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
    plan = _plan(_paper("dense_1b", *flags), "v5e:2x2")
    assert not plan.compiled.fits
    assert plan.compiled.reason
    assert re.fullmatch(
        r"RESOURCE_EXHAUSTED: [^\n]*\(2\d\.\d+G\) exceeds available HBM \(15\.75G\)\."
        r"( HLO .*)?",
        plan.compiled.reason,
    )
    assert plan.change == "--config.execution.accumulation=2"
