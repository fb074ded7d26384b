"""Will it fit and compile on that pod? The real train step, compiled ahead of time for a named topology, from a CPU."""

import dataclasses
import re
import time
from bisect import bisect_left
from collections.abc import Iterator
from typing import Any, get_args

import jax
from etils import epath

from sparsecod_jax import config
from sparsecod_jax.config import Experiment, counts
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.parallel import devices, layout
from sparsecod_jax.plan import hlo, topologies
from sparsecod_jax.plan.topologies import Topology
from sparsecod_jax.storage import files, records
from sparsecod_jax.train.step import Program, build

GIB = devices.GIB
OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"


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
      every_remat: also compiles every remat policy, so that the one that recomputes least can be chosen among those that fit.

    Raises:
      ConfigError: as `plan` does, or `out` can't be written.
    """
    if not 0 < mfu <= 1:
        raise ConfigError(
            f"--mfu={mfu} is not a share of the peak: use a number above 0 and up to 1, such as 0.4"
        )
    jax.config.update(
        "jax_platforms", "cpu"
    )  # the chips that are compiled for are not here
    wanted = [topologies.find(name) for name in names]
    for topology in wanted:
        layout.resolve(experiment, topology.devices, topology.slices)
    target = files.absolute(out) if out else None
    if target:
        _check_target(target)  # now, as compiling takes minutes
    found = []
    for topology in wanted:
        found.append(plan(experiment, topology, mfu))
        if every_remat:
            found[-1]["remat"] = every_remat_policy(experiment, topology, found[-1])
        print(report(found[-1]), flush=True)
        if target:
            records.write_json(target, found)


def _check_target(target: epath.Path) -> None:
    """Refuses a file that can't be written, or that holds something else than plans."""
    files.check_can_write(target)
    if not target.exists():
        return
    found = records.read_json(target)
    if not isinstance(found, list) or not all(
        isinstance(each, dict) and "topology" in each for each in found
    ):
        raise ConfigError(
            f"{target} holds something else than plans: choose another --out"
        )


def plan(
    experiment: Experiment, topology: Topology, mfu: float, *, search: bool = True
) -> dict[str, Any]:
    """What `experiment` needs on `topology`, as plain JSON values.

    Args:
      mfu: assumed model FLOPs utilisation, for step time and chip-hours.
      search: whether to compile on, where it does not fit, until a change is found that does.

    Raises:
      ConfigError: no mesh of these devices divides model and batch.
    """
    program = build(experiment, topology.devices, topology.slices)
    found = {
        "topology": topology.name,
        "devices": len(topology.devices),
        "slices": topology.slices,
        "device_kind": topology.devices[0].device_kind,
        "placement": layout.describe(program.layout, experiment),
        "mesh": dataclasses.asdict(program.layout.mesh),
        "execution": dataclasses.asdict(program.layout.decided(experiment.execution)),
        **budget(experiment, topology, mfu),
        **compiled(program, topology),
    }
    if search and not found["fits"]:
        found["change"] = smallest_change(experiment, topology)
    return found


def budget(experiment: Experiment, topology: Topology, mfu: float) -> dict[str, Any]:
    """What follows from sizes alone."""
    flops = (
        counts.flops_per_token(experiment.model, experiment.data.seq_len)
        * experiment.tokens_per_step
    )
    seconds = flops / (len(topology.devices) * topology.device.peak_flops * mfu)
    return {
        "parameters": dataclasses.asdict(counts.parameters(experiment.model)),
        "tokens": experiment.steps * experiment.tokens_per_step,
        "flops_per_step": flops,
        "flops_convention": counts.FLOPS_CONVENTION,
        "assumed_mfu": mfu,
        "step_seconds": seconds,
        "chip_hours": seconds * experiment.steps * len(topology.devices) / 3600,
    }


def compiled(program: Program, topology: Topology) -> dict[str, Any]:
    """Memory, collectives and compile time of the programs that a run alternates between; out of memory is a finding."""
    leaves = jax.tree.leaves(program.abstract_state)
    state = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    found: dict[str, Any] = {
        "checkpoint_bytes": state,
        "fits": True,
        "compile_seconds": 0.0,
    }
    for with_moments in (
        [False, True] if program.experiment.log.moments_every else [False]
    ):
        began = time.perf_counter()
        found |= _compiled_once(program, topology, found.get("memory"), with_moments)
        found["compile_seconds"] += time.perf_counter() - began
        if not found["fits"]:
            break
    return found


def _compiled_once(
    program: Program,
    topology: Topology,
    before: dict[str, Any] | None,
    with_moments: bool,
) -> dict[str, Any]:
    """What one program adds to the findings; `before` is the memory of the other."""
    try:
        executable = program.lower(with_moments=with_moments).compile()
    except jax.errors.JaxRuntimeError as error:
        if OUT_OF_MEMORY not in str(error):
            raise
        return {"fits": False, "reason": _reason(str(error))}
    analysis = executable.memory_analysis()
    assert analysis, "every compiler named in `topologies` analyses memory"
    memory = {
        "arguments": analysis.argument_size_in_bytes,
        "temporaries": analysis.temp_size_in_bytes,
        "limit": topology.device.memory,
    }
    memory["peak"] = memory["arguments"] + memory["temporaries"]
    found: dict[str, Any] = {
        "memory": memory
        if before is None or memory["peak"] > before["peak"]
        else before
    }
    if not with_moments:
        found["collectives"] = {
            kind: dataclasses.asdict(sent)
            for kind, sent in hlo.collectives(executable.as_text() or "").items()
        }
    if memory["peak"] > memory["limit"]:
        peak, limit = memory["peak"] / GIB, memory["limit"] / GIB
        found |= {
            "fits": False,
            "reason": f"arguments and temporaries take {peak:.1f} of {limit:.1f} GiB",
        }
    return found


def _reason(error: str) -> str:
    """The first line; where that is only a title, also for what memory ran out."""
    title, *details = error.splitlines()
    if title.endswith(":") and details:
        title += " " + details[0].partition(" = ")[0]
    return re.sub(r"\s+", " ", title)


def smallest_change(experiment: Experiment, topology: Topology) -> str:
    """The first change that fits, as overrides of the config; or that none does.

    Compiling takes minutes, and memory only falls along a group: where its last change does not fit, none of it does.
    """

    def fits(changes: dict[str, Any]) -> bool:
        values = config.to_dict(experiment)
        for name, value in changes.items():
            section, field = name.split(".")
            values[section][field] = value
        try:
            program = build(config.from_dict(values), topology.devices, topology.slices)
        except ConfigError:
            return False
        return compiled(program, topology)["fits"]

    for group in _changes(
        experiment, layout.resolve(experiment, topology.devices, topology.slices)
    ):
        if fits(group[-1]):
            first = group[bisect_left(group, True, hi=len(group) - 1, key=fits)]
            return " ".join(f"--config.{name}={value}" for name, value in first.items())
    return "none of microbatches, a loop over blocks, remat and fsdp makes it fit: take a larger slice"


def every_remat_policy(
    experiment: Experiment, topology: Topology, planned: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Memory, or why it does not fit, by remat policy; `planned` has that of the experiment's own."""
    found = {}
    for policy in get_args(config.Remat):
        execution = dataclasses.replace(experiment.execution, remat=policy)
        if execution == experiment.execution:
            result = planned
        else:
            program = build(
                dataclasses.replace(experiment, execution=execution),
                topology.devices,
                topology.slices,
            )
            result = compiled(program, topology)
        found[policy] = {
            name: value
            for name, value in result.items()
            if name in ("fits", "memory", "reason")
        }
    return found


def _changes(
    experiment: Experiment, now: layout.Layout
) -> Iterator[list[dict[str, Any]]]:
    """Groups of changes, each with less memory towards its end.

    Smaller microbatches first, which cost least, then a loop over blocks that were unrolled, then full remat, then data-parallel replicas
    turned into shards, each with one row. Blocks that stay unrolled under full remat are not tried, as nobody has measured them.
    """
    mesh = now.mesh
    rows = experiment.global_batch // (mesh.data * mesh.fsdp * mesh.expert)
    splits = [count for count in range(now.microbatches, rows + 1) if rows % count == 0]
    if splits[1:]:
        yield [{"execution.accumulation": count} for count in splits[1:]]
    kept: dict[str, Any] = {}
    for field, least in (("unroll", False), ("remat", "full")):
        if getattr(now.kernels, field) != least:
            kept[f"execution.{field}"] = least
            yield [{"execution.accumulation": count, **kept} for count in splits]
    for data in range(mesh.data - 1, 0, -1):
        if mesh.data % data == 0:
            wider = {"mesh.data": data, "mesh.fsdp": mesh.fsdp * mesh.data // data}
            yield [{**wider, **kept, "execution.accumulation": rows}]


def report(found: dict[str, Any]) -> str:
    """A plan as a few lines for people."""
    sent = [
        f"{kind} {each['count']} x, {each['bytes'] / 1e9:.2f} GB"
        for kind, each in sorted(found.get("collectives", {}).items())
    ]
    parameters = found["parameters"]
    return "\n".join(
        [
            f"{found['topology']}: {found['devices']} x {found['device_kind']}",
            f"  {found['placement']}",
            f"  {_verdict(found)}",
            *([] if found["fits"] else [f"  smallest change: {found['change']}"]),
            f"  {parameters['total']:,} parameters, {parameters['activated']:,} activated;"
            f" checkpoint {found['checkpoint_bytes'] / 1e9:.1f} GB",
            f"  collectives of a step on a chip: {'; '.join(sent) or 'none'}",
            f"  {found['flops_per_step']:.3g} FLOPs a step ({found['flops_convention']})",
            f"  at MFU {found['assumed_mfu']:.0%}: {found['step_seconds']:.2f} s a step,"
            f" {found['chip_hours']:,.0f} chip-hours for {found['tokens']:,} tokens",
            f"  compiled in {found['compile_seconds']:.0f} s",
            *(
                f"  remat {policy}: {_verdict(each)}"
                for policy, each in found.get("remat", {}).items()
            ),
        ]
    )


def _verdict(found: dict[str, Any]) -> str:
    if not found["fits"]:
        return f"does not fit: {found['reason']}"
    memory = found["memory"]
    peak, limit, arguments, temporaries = (
        memory[name] / GIB for name in ("peak", "limit", "arguments", "temporaries")
    )
    return f"fits: peak {peak:.2f} of {limit:.2f} GiB a chip (arguments {arguments:.2f}, temporaries {temporaries:.2f})"
