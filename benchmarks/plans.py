"""Does every published configuration fit and compile, before a chip is rented?

Writes docs/plans.json and docs/plans.md. Each case is compiled for the smallest slice of each
kind that holds it, for 64 chips, and two of them for 512. What is in docs/plans.json already is
not compiled again, so the script may be stopped at any time; delete what code or compiler have
overtaken. The second program of a run, with the costly statistics, is left out here; `sparsecod
plan` compiles both.

Command:  make plans      (three hours on two cores; some of it: --cases CASE --kinds KIND)
"""

import argparse
import functools
import json
import os
import time
from collections.abc import Iterable
from typing import Any

import jax
from etils import epath

from sparsecod_jax.config import Experiment, counts
from sparsecod_jax.config.load import load_experiment
from sparsecod_jax.parallel.devices import CHIPS, GIB
from sparsecod_jax.plan import topologies
from sparsecod_jax.plan.plan import make_plan
from sparsecod_jax.storage import files, records

DOCS = epath.Path(__file__).resolve().parents[1] / "docs"
MFU = 0.4
COLUMNS = (
    "case | topology | verdict | mesh | microbatches | peak of limit, GiB"
    " | GB a step and chip | s a step | chip-hours | compile s"
)

# By dimensions of a TPU slice, 0 for GPUs: sizes up to 64 chips, and one of 512.
SIZES = {
    3: ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4"),
    2: ("2x2", "2x4", "4x4", "4x8", "8x8"),
    0: ("1", "2", "4", "8", "2x8", "4x8", "8x8"),
}
SIZE_512 = {3: "8x8x8", 2: "16x16*2", 0: "64x8"}
DIMENSIONS = {
    chip.name: chip.tpu.dimensions if chip.tpu else 0
    for chip in CHIPS
    if chip.has_topologies
}
LADDERS = {chip: SIZES[dimensions] for chip, dimensions in DIMENSIONS.items()}
LARGEST = {chip: SIZE_512[dimensions] for chip, dimensions in DIMENSIONS.items()}


def _length(seq_len: int) -> list[str]:
    """As published: 256 sequences a step at every length, cut at the steps of the longest."""
    return [f"data.seq_len={seq_len}", f"evaluation.seq_len={seq_len}", "steps=2384"]


LONG = ["data.seq_len=4096", "evaluation.seq_len=4096", "steps=4769"]
CASES: dict[str, tuple[str, list[str]]] = {
    "dense 1B, 16 blocks": ("dense_1b", []),
    **{
        f"dense 1B, {depth} blocks": ("dense_1b", [f"model.n_layers={depth}"])
        for depth in (12, 24, 32)
    },
    "moe 400M/2B": ("moe_400m_2b", []),
    "moe 1B/7B": ("moe_1b_7b", []),
    "recipe, 32 blocks": ("recipe_1b_32l", []),
    "dense 400M": ("dense_400m", []),
    **{
        f"G={16 // heads}, T=4096": ("dense_1b", [*LONG, f"model.n_kv_heads={heads}"])
        for heads in (16, 4, 1)
    },
    **{
        f"T={seq_len}": ("dense_1b", _length(seq_len))
        for seq_len in (8192, 256, 512, 2048)
    },
}
AT_512 = ("dense 1B, 16 blocks", "moe 1B/7B")


def main(cases: Iterable[str], kinds: Iterable[str]) -> None:
    for name in cases:
        for kind in kinds:
            while topology := _next(name, kind, _read()):
                _compile(name, topology)


def _next(name: str, kind: str, plans: dict[str, Any]) -> str | None:
    """What is to be compiled next.

    Up the ladder until one holds the case, leaving out those without room for the state; 64
    chips; 512.
    """
    state = 12 * counts.parameters(_experiment(name).model).total
    ladder = [f"{kind}:{shape}" for shape in LADDERS[kind]]
    for topology in ladder:
        found = plans.get(f"{name} on {topology}")
        if not found and state <= _memory(topology):
            return topology
        if found and found["fits"]:
            break
    largest = [f"{kind}:{LARGEST[kind]}"] if name in AT_512 else []
    return next(
        (
            topology
            for topology in (ladder[-1], *largest)
            if f"{name} on {topology}" not in plans
        ),
        None,
    )


@functools.cache
def _memory(topology: str) -> float:
    found = topologies.find(topology)
    return len(found.devices) * found.chip.memory


def _experiment(name: str) -> Experiment:
    config, overrides = CASES[name]
    settings = [*overrides, "log.moments_every=0"]
    return load_experiment(
        f"{DOCS.parent}/configs/{config}.py:paper",
        [f"--config.{setting}" for setting in settings],
    )


def _compile(name: str, topology: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {name} on {topology}", flush=True)
    experiment = _experiment(name)
    # For a MoE on TPUs the search for a change takes a quarter of an hour.
    searched = not experiment.model.n_experts or topology.startswith("h100")
    plan = make_plan(experiment, topologies.find(topology), MFU, search=searched)
    found = plan.to_dict() | {
        "case": name,
        "machine": f"{os.cpu_count()} CPU cores",
        "jax": jax.__version__,
    }
    # Read now, as another process may have written while this one compiled.
    plans = _read() | {f"{name} on {topology}": found}
    records.write_json(DOCS / "plans.json", plans)
    files.write(DOCS / "plans.md", page(plans).encode())
    jax.clear_caches()


def _read() -> dict[str, dict[str, Any]]:
    file = DOCS / "plans.json"
    return json.loads(file.read_text()) if file.exists() else {}


def page(plans: dict[str, dict[str, Any]]) -> str:
    """The plans as a page for people, in the order of the cases."""
    order = list(CASES)
    found = sorted(
        plans.values(),
        key=lambda each: (
            order.index(each["case"]),
            each["device_kind"],
            each["devices"],
        ),
    )
    rows = "\n".join(_row(each) for each in found)
    return f"""# Plans

The real train step of {len(CASES)} published configurations, compiled ahead of time by \
`benchmarks/plans.py` for slices that were not
there: the smallest of each kind that holds it, 64 chips, and for two of them 512. \
{_missing(plans)} {_compiled(found)}

Microbatches, mesh and attention are those that the package chooses. \
Step time and chip-hours are arithmetic, at an assumed MFU of
{MFU:.0%}; nothing here was run.

What does not fit stands with the smallest change that makes it fit; \
for a mixture on TPUs, which takes long to compile, `sparsecod plan`
searches for one. The lengths 1,024 and 4,096 of the study of context are the programs
of `dense 1B, 16 blocks` and of `G=1, T=4096`, run for 2,384 steps.

| {COLUMNS} |
|{"---|" * (COLUMNS.count("|") + 1)}
{rows}
"""


def _missing(plans: dict[str, dict[str, Any]]) -> str:
    kinds = {
        name: [kind for kind in LADDERS if _next(name, kind, plans)] for name in CASES
    }
    missing = "; ".join(
        f"{name} on {', '.join(wanted)}" for name, wanted in kinds.items() if wanted
    )
    return (
        f"Some of it is still to be compiled: {missing}."
        if missing
        else "The table is complete."
    )


def _compiled(found: list[dict[str, Any]]) -> str:
    """How long compiling took, by machine and compiler."""
    by_machine: dict[str, list[float]] = {}
    for each in found:
        by_machine.setdefault(f"{each['machine']} with jax {each['jax']}", []).append(
            each["compile_seconds"]
        )
    parts = "; ".join(
        f"{len(times)} on {machine} in {sum(times) / 60:.0f}"
        for machine, times in by_machine.items()
    )
    total = sum(each["compile_seconds"] for each in found) / 60
    return (
        f"Compiling the {len(found)} programs took {total:.0f} minutes,"
        f" without those tried in search of a change: {parts}."
    )


def _row(found: dict[str, Any]) -> str:
    memory = found.get("memory")
    sent = [
        f"{kind} {each['bytes'] / 1e9:.1f}"
        for kind, each in sorted(found.get("collectives", {}).items())
        if each["bytes"] > 5e7
    ]
    cells = (
        found["case"],
        found["topology"],
        "fits"
        if found["fits"]
        else "; ".join(found[part] for part in ("reason", "change") if part in found),
        " x ".join(f"{axis} {size}" for axis, size in found["mesh"].items() if size > 1)
        or "one device",
        found["execution"]["accumulation"],
        f"{memory['peak'] / GIB:.1f} of {memory['limit'] / GIB:.1f}" if memory else "",
        ", ".join(sent),
        f"{found['step_seconds']:.2f}" if found["fits"] else "",
        f"{found['chip_hours']:,.0f}" if found["fits"] else "",
        f"{found['compile_seconds']:.0f}",
    )
    return f"| {' | '.join(str(cell) for cell in cells)} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="Compiles the published configurations for slices that are not here."
    )
    parser.add_argument(
        "--cases", nargs="+", choices=CASES, default=CASES, metavar="CASE"
    )
    parser.add_argument(
        "--kinds", nargs="+", choices=LADDERS, default=LADDERS, metavar="KIND"
    )
    main(**vars(parser.parse_args()))
