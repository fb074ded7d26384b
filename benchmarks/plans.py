"""Does every published configuration fit and compile, before a chip is rented? Writes docs/plans.json and docs/plans.md.

Each case is compiled for the smallest slice of each kind that holds it, for 64 chips, and two of them for 512. What is in docs/plans.json
already is not compiled again, so the script may be stopped at any time; delete what code or compiler have overtaken. The second program
of a run, with the costly statistics, is left out here; `sparsecod plan` compiles both.

Command:  JAX_PLATFORMS=cpu python benchmarks/plans.py [CASE ...]      (extras tpu and gpu; about two hours on two cores)
"""

import json
import sys
import time
from typing import Any

import jax
from etils import epath

from sparsecod_jax import config_file, counts, files, topologies
from sparsecod_jax.config import Experiment
from sparsecod_jax.plan import GIB, plan

DOCS = epath.Path(__file__).resolve().parents[1] / "docs"
MFU = 0.4
COLUMNS = "case | topology | verdict | mesh | microbatches | peak of limit, GiB | GB a step and chip | s a step | chip-hours | compile s"

LADDERS = {
    "v4": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4"),
    "v5e": ("2x2", "2x4", "4x4", "4x8", "8x8"),
    "v5p": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4"),
    "v6e": ("2x2", "2x4", "4x4", "4x8", "8x8"),
    "h100": ("1", "2", "4", "8", "2x8", "4x8", "8x8"),
}
LARGEST = {"v4": "8x8x8", "v5e": "16x16*2", "v5p": "8x8x8", "v6e": "16x16*2", "h100": "64x8"}  # 512 chips


def _length(seq_len: int) -> list[str]:
    """As published: 256 sequences a step at every length, cut at the steps of the longest."""
    return [f"data.seq_len={seq_len}", f"evaluation.seq_len={seq_len}", "steps=2384"]


LONG = ["data.seq_len=4096", "evaluation.seq_len=4096", "steps=4769"]
CASES: dict[str, tuple[str, list[str]]] = {
    "dense 1B, 16 blocks": ("dense_1b", []),
    **{f"dense 1B, {depth} blocks": ("dense_1b", [f"model.n_layers={depth}"]) for depth in (12, 24, 32)},
    "moe 400M/2B": ("moe_400m_2b", []),
    "moe 1B/7B": ("moe_1b_7b", []),
    "recipe, 32 blocks": ("recipe_1b_32l", []),
    "dense 400M": ("dense_400m", []),
    **{f"G={16 // heads}, T=4096": ("dense_1b", [*LONG, f"model.n_kv_heads={heads}"]) for heads in (16, 4, 1)},
    **{f"T={seq_len}": ("dense_1b", _length(seq_len)) for seq_len in (8192, 256, 512, 1024, 2048, 4096)},
}
AT_512 = ("dense 1B, 16 blocks", "moe 1B/7B")


def main(names: list[str]) -> None:
    unknown = sorted(set(names) - set(CASES))
    if unknown:
        raise SystemExit(f"there are no cases {unknown}: choose from {list(CASES)}")
    for name in names or CASES:
        experiment = _experiment(name)
        for kind, ladder in LADDERS.items():
            largest = [f"{kind}:{LARGEST[kind]}"] if name in AT_512 else []
            for topology in (_smallest(name, experiment, kind), f"{kind}:{ladder[-1]}", *largest):
                _planned(name, experiment, topology)


def _experiment(name: str) -> Experiment:
    config, overrides = CASES[name]
    settings = [*overrides, "log.moments_every=0"]
    return config_file.load(f"{DOCS.parent}/configs/{config}.py:paper", [f"--config.{setting}" for setting in settings])


def _smallest(name: str, experiment: Experiment, kind: str) -> str:
    """The first rung on which the case fits as planned; those that can't hold even the state are not tried."""
    state = 12 * counts.parameters(experiment.model).total
    for shape in LADDERS[kind]:
        topology = f"{kind}:{shape}"
        found = topologies.find(topology)
        if state <= len(found.devices) * found.device.memory and _planned(name, experiment, topology)["fits"]:
            return topology
    return topology


def _planned(name: str, experiment: Experiment, topology: str) -> dict[str, Any]:
    plans = _read()
    key = f"{name} on {topology}"
    if key not in plans:
        print(f"[{time.strftime('%H:%M:%S')}] {key}", flush=True)
        plans[key] = plan(experiment, topologies.find(topology), MFU) | {"case": name, "jax": jax.__version__}
        files.write_json(DOCS / "plans.json", plans)
        files.write(DOCS / "plans.md", page(plans).encode())
        jax.clear_caches()
    return plans[key]


def _read() -> dict[str, dict[str, Any]]:
    file = DOCS / "plans.json"
    return json.loads(file.read_text()) if file.exists() else {}


def page(plans: dict[str, dict[str, Any]]) -> str:
    """The plans as a page for people, in the order of the cases."""
    order = list(CASES)
    found = sorted(plans.values(), key=lambda each: (order.index(each["case"]), each["device_kind"], each["devices"]))
    seconds = sum(each["compile_seconds"] for each in found)
    rows = "\n".join(_row(each) for each in found)
    return f"""# Plans

The real train step of published configurations, compiled ahead of time for slices that were not there by `benchmarks/plans.py`:
{len({each["case"] for each in found})} of {len(CASES)} configurations so far, {len(found)} programs, {seconds / 60:.0f} minutes of
compiling on two CPU cores. Microbatches, mesh and attention are those that the package chooses. Step time and chip-hours are
arithmetic, at an assumed MFU of {MFU:.0%}; nothing here was run. For a mixture on H100 the memory is an upper bound: without a GPU the
experts' products are compiled as `ragged_dot`, not as the kernels that `train` uses.

| {COLUMNS} |
|{"---|" * (COLUMNS.count("|") + 1)}
{rows}
"""


def _row(found: dict[str, Any]) -> str:
    memory = found.get("memory")
    sent = [f"{kind} {each['bytes'] / 1e9:.1f}" for kind, each in sorted(found.get("collectives", {}).items()) if each["bytes"] > 5e7]
    cells = (
        found["case"],
        found["topology"],
        "fits" if found["fits"] else f"{found['reason']}; {found['change']}",
        " x ".join(f"{axis} {size}" for axis, size in found["mesh"].items() if size > 1) or "one device",
        found["execution"]["accumulation"],
        f"{memory['peak'] / GIB:.1f} of {memory['limit'] / GIB:.1f}" if memory else "",
        ", ".join(sent),
        f"{found['step_seconds']:.2f}" if found["fits"] else "",
        f"{found['chip_hours']:,.0f}" if found["fits"] else "",
        f"{found['compile_seconds']:.0f}",
    )
    return f"| {' | '.join(str(cell) for cell in cells)} |"


if __name__ == "__main__":
    main(sys.argv[1:])
