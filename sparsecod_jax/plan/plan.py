"""Will it fit and compile on that pod? Plans: the real train step, compiled on a CPU.

It is compiled ahead of time for a named topology, no chip of which need be here.
"""

import dataclasses
from typing import get_args

import jax
from etils import epath

from sparsecod_jax import config
from sparsecod_jax.config import Experiment, counts
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.parallel import layout
from sparsecod_jax.parallel.devices import GIB
from sparsecod_jax.plan import topologies
from sparsecod_jax.plan.findings import Budget, Compiled, Plan
from sparsecod_jax.plan.fit import compile_programs, smallest_change
from sparsecod_jax.plan.topologies import Topology
from sparsecod_jax.storage import files, records
from sparsecod_jax.train.step import build


def plan_all(
    experiment: Experiment,
    names: list[str],
    mfu: float,
    out: str | None,
    *,
    every_remat: bool = False,
) -> None:
    """Prints a plan for each topology, and writes all to the JSON file `out`.

    Args:
      every_remat: also compiles every remat policy, so that the one that recomputes least
        can be chosen among those that fit.

    Raises:
      ConfigError: as `make_plan` does, or `out` can't be written.
    """
    check_mfu(mfu)
    # The chips that are compiled for are not here.
    jax.config.update("jax_platforms", "cpu")
    wanted = [topologies.find(name) for name in names]
    # Compiling takes minutes: before that, layouts and the file are checked.
    for topology in wanted:
        layout.resolve(experiment, topology.devices, topology.slices)
    target = files.absolute(out) if out else None
    if target:
        _check_target(target)
    plans = []
    for topology in wanted:
        plan = make_plan(experiment, topology, mfu)
        if every_remat:
            remat = every_remat_policy(experiment, topology, plan.compiled)
            plan = dataclasses.replace(plan, remat=remat)
        plans.append(plan)
        print(report(plan), flush=True)
        if target:
            records.write_json(target, [each.to_dict() for each in plans])


def check_mfu(mfu: float) -> None:
    """Refuses a utilisation that is no share.

    Raises:
      ConfigError: it is not above 0 and up to 1.
    """
    if not 0 < mfu <= 1:
        raise ConfigError(
            f"--mfu={mfu} is not a share of the peak:"
            " use a number above 0 and up to 1, such as 0.4"
        )


def _check_target(target: epath.Path) -> None:
    """Refuses a file that can't be written, or that holds anything but plans."""
    files.check_can_write(target)
    if not target.exists():
        return
    content = records.read_json(target)
    are_plans = isinstance(content, list) and all(
        isinstance(entry, dict) and "topology" in entry for entry in content
    )
    if not are_plans:
        raise ConfigError(
            f"{target} holds something else than plans: choose another --out"
        )


def make_plan(
    experiment: Experiment, topology: Topology, mfu: float, *, search: bool = True
) -> Plan:
    """What `experiment` needs on `topology`.

    Args:
      mfu: assumed model FLOPs utilisation, for step time and chip-hours.
      search: whether to compile on, where it does not fit, until a change is found with
        which it does.

    Raises:
      ConfigError: no mesh of these devices divides model and batch.
    """
    program = build(experiment, topology.devices, topology.slices)
    compiled = compile_programs(program, topology)
    change = None
    if search and not compiled.fits:
        change = smallest_change(experiment, topology)
    return Plan(
        topology=topology.name,
        devices=len(topology.devices),
        slices=topology.slices,
        device_kind=topology.devices[0].device_kind,
        placement=layout.describe(program.layout, experiment),
        mesh=program.layout.mesh,
        execution=program.layout.decided(experiment.execution),
        budget=_budget(experiment, topology, mfu),
        compiled=compiled,
        change=change,
    )


def _budget(experiment: Experiment, topology: Topology, mfu: float) -> Budget:
    """FLOPs from the model, time from FLOPs and the peak of the chips."""
    flops_per_token = counts.flops_per_token(experiment.model, experiment.data.seq_len)
    flops = flops_per_token * experiment.tokens_per_step
    chips = len(topology.devices)
    seconds = flops / (chips * topology.chip.peak_flops * mfu)
    return Budget(
        parameters=counts.parameters(experiment.model),
        tokens=experiment.steps * experiment.tokens_per_step,
        flops_per_step=flops,
        flops_convention=counts.FLOPS_CONVENTION,
        assumed_mfu=mfu,
        step_seconds=seconds,
        chip_hours=seconds * experiment.steps * chips / 3600,
    )


def every_remat_policy(
    experiment: Experiment, topology: Topology, compiled: Compiled
) -> dict[str, Compiled]:
    """Each remat policy compiled, by its name.

    Args:
      compiled: what was found with the experiment's own policy, which is not compiled
        again.
    """
    by_policy = {}
    for policy in get_args(config.Remat):
        execution = dataclasses.replace(experiment.execution, remat=policy)
        if execution == experiment.execution:
            by_policy[policy] = compiled
            continue
        changed = dataclasses.replace(experiment, execution=execution)
        program = build(changed, topology.devices, topology.slices)
        by_policy[policy] = compile_programs(program, topology)
    return by_policy


def report(plan: Plan) -> str:
    """A plan for people: layout, verdict, sizes, collectives and costs."""
    budget, compiled = plan.budget, plan.compiled
    parameters = budget.parameters
    collectives = []
    for kind, traffic in sorted((compiled.collectives or {}).items()):
        gigabytes = traffic.bytes / 1e9
        collectives.append(f"{kind} {traffic.count} x, {gigabytes:.2f} GB")
    lines = [
        f"{plan.topology}: {plan.devices} x {plan.device_kind}",
        f"  {plan.placement}",
        f"  {_verdict(compiled)}",
    ]
    if not compiled.fits:
        lines.append(f"  smallest change: {plan.change}")
    lines += [
        f"  {parameters.total:,} parameters, {parameters.activated:,} activated;"
        f" checkpoint {compiled.checkpoint_bytes / 1e9:.1f} GB",
        f"  collectives per step and chip: {'; '.join(collectives) or 'none'}",
        f"  {budget.flops_per_step:.3g} FLOPs per step ({budget.flops_convention})",
        f"  at MFU {budget.assumed_mfu:.0%}: {budget.step_seconds:.2f} s per step,"
        f" {budget.chip_hours:,.0f} chip-hours for {budget.tokens:,} tokens",
        f"  compiled in {compiled.compile_seconds:.0f} s",
    ]
    for policy, remat in (plan.remat or {}).items():
        lines.append(f"  remat {policy}: {_verdict(remat)}")
    return "\n".join(lines)


def _verdict(compiled: Compiled) -> str:
    """Whether it fits, and with how much memory or why not."""
    if not compiled.fits:
        return f"does not fit: {compiled.reason}"
    memory = compiled.memory
    assert memory, "what fits has been compiled"
    return (
        f"fits: peak {memory.peak / GIB:.2f} of {memory.limit / GIB:.2f} GiB per chip"
        f" (arguments {memory.arguments / GIB:.2f},"
        f" temporaries {memory.temporaries / GIB:.2f})"
    )
