"""What would each run of a study need on its devices? Plans of a study, as a table.

They are compiled once and kept in the study directory.
"""

import dataclasses
import hashlib
import json
from argparse import Namespace

from sparsecod_jax import config
from sparsecod_jax.config import counts
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.launching import package
from sparsecod_jax.parallel.devices import GIB
from sparsecod_jax.parallel.processes import log_phase
from sparsecod_jax.plan import topologies
from sparsecod_jax.plan.findings import Plan
from sparsecod_jax.plan.plan import check_mfu, make_plan
from sparsecod_jax.storage import files, records
from sparsecod_jax.study.study import Run
from sparsecod_jax.study.study_dir import PLANS

COLUMNS = ("run", "hosts", "chips", "peak GiB", "tokens", "FLOPs", "chip-hours")

PlansByRun = dict[str, Plan | None]  # None where no topology was given


def find(runs: list[Run], args: Namespace) -> PlansByRun:
    """The plan of each run by its name.

    Runs that differ in seeds alone are compiled once, and kept.

    Raises:
      ConfigError: there is no such topology, it does not divide a run, or --mfu is no
        share.
    """
    check_mfu(args.mfu)
    if not args.topology:
        return dict.fromkeys([run.name for run in runs])
    return {run.name: _find(run, args) for run in runs}


def _find(run: Run, args: Namespace) -> Plan:
    """The plan that was kept, or a new one, which is then kept."""
    file = files.absolute(args.workdir) / PLANS / f"{_key(run, args)}.json"
    if file.exists():
        return Plan.from_dict(records.read_json(file))
    log_phase(f"{run.name}: compiling for {args.topology}")
    topology = topologies.find(args.topology)
    plan = make_plan(run.experiment, topology, args.mfu)
    files.make_folder(file.parent)
    records.write_json(file, plan.to_dict())
    return plan


def _key(run: Run, args: Namespace) -> str:
    """A name for all that a plan depends on: no seed and no path."""
    values = config.to_dict(run.experiment)
    values["seed"] = 0
    values["data"]["seed"] = 0
    values["data"]["path"] = ""
    # Another commit may compile another program.
    content = [values, args.topology, args.mfu, package.commit()]
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check(runs: list[Run], plans: PlansByRun) -> None:
    """Refuses runs that do not fit.

    Raises:
      ConfigError: names the first of them and the change that makes it fit.
    """
    for run in runs:
        plan = plans[run.name]
        if plan and not plan.compiled.fits:
            raise ConfigError(
                f"{run.name} does not fit on {plan.topology} ({plan.compiled.reason}):"
                f" {plan.change}"
            )


def table(runs: list[Run], plans: PlansByRun) -> str:
    """The plans of all runs and their total, for people.

    One line for each run, with the columns of `COLUMNS`. Without a topology tokens and
    FLOPs are known, and nothing else.
    """
    rows: list[tuple[str, ...]] = [COLUMNS]
    total = _Costs(tokens=0, flops=0.0, chip_hours=None)
    for run in runs:
        plan = plans[run.name]
        costs = _Costs.of(run, plan)
        total += costs
        rows.append((run.name, *_needs(plan), *costs.cells()))
    # Runs follow one another on the same devices, so that these have no total.
    rows.append((f"{len(runs)} runs", "", "", "", *total.cells()))
    lines = _aligned(rows)
    if total.chip_hours is None:
        lines.append("not planned: give --topology to know whether runs fit")
    return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class _Costs:
    """What a run, or all runs, cost."""

    tokens: int
    flops: float
    chip_hours: float | None  # None where nothing was planned

    @classmethod
    def of(cls, run: Run, plan: Plan | None) -> "_Costs":
        """The costs of one run from its first step to its last."""
        experiment = run.experiment
        model, seq_len = experiment.model, experiment.data.seq_len
        tokens = experiment.steps * experiment.tokens_per_step
        flops = tokens * counts.flops_per_token(model, seq_len)
        chip_hours = None
        if plan:
            chip_hours = plan.budget.chip_hours
        return cls(tokens, flops, chip_hours)

    def __add__(self, other: "_Costs") -> "_Costs":
        chip_hours = self.chip_hours
        if other.chip_hours is not None:
            chip_hours = (chip_hours or 0.0) + other.chip_hours
        return _Costs(
            tokens=self.tokens + other.tokens,
            flops=self.flops + other.flops,
            chip_hours=chip_hours,
        )

    def cells(self) -> tuple[str, str, str]:
        """The last three columns of a row."""
        hours = "-"
        if self.chip_hours is not None:
            hours = f"{self.chip_hours:,.1f}"
        return f"{self.tokens:,}", f"{self.flops:.3g}", hours


def _needs(plan: Plan | None) -> tuple[str, str, str]:
    """The columns hosts, chips and peak GiB."""
    if not plan:
        return "-", "-", "not planned"
    shape = topologies.shape(plan.topology)
    hosts = shape.slices * shape.hosts
    return str(hosts), str(plan.devices), _peak(plan)


def _peak(plan: Plan) -> str:
    """Peak memory per device of its limit; where the compiler ran out of it, its words."""
    memory = plan.compiled.memory
    if not memory:
        return plan.compiled.reason or ""
    peak = f"{memory.peak / GIB:.2f} of {memory.limit / GIB:.2f}"
    if not plan.compiled.fits:
        peak += ", does not fit"
    return peak


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """The rows as lines, each column as wide as its widest cell."""
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines
