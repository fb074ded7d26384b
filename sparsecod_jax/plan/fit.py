"""Does it fit, and what would make it fit? Compilation of a run's programs.

From each the compiler's count of memory is taken, and what devices send to each other.
"""

import dataclasses
import re
import time
from bisect import bisect_left
from collections.abc import Iterator
from typing import Any

import jax

from sparsecod_jax import config
from sparsecod_jax.config import Experiment
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.parallel import layout
from sparsecod_jax.parallel.devices import GIB
from sparsecod_jax.plan import hlo
from sparsecod_jax.plan.findings import Compiled, Memory
from sparsecod_jax.plan.topologies import Topology
from sparsecod_jax.train.step import Program, build

Changes = dict[str, Any]  # values of fields such as execution.remat

# How XLA begins the message of an error about memory.
OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"
NOTHING_FITS = (
    "none of microbatches, a loop over blocks, remat and fsdp makes it fit:"
    " take a larger slice"
)


def compile_programs(program: Program, topology: Topology) -> Compiled:
    """Memory, collectives and compile time of the programs that a run alternates between.

    Running out of memory is a finding, not an error.

    Raises:
      JaxRuntimeError: the compiler fails for another reason.
    """
    leaves = jax.tree.leaves(program.abstract_state)
    state_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    found = Compiled(checkpoint_bytes=state_bytes)
    # Steps with the costly statistics are a program of their own.
    variants = [False]
    if program.experiment.log.moments_every:
        variants.append(True)
    for with_moments in variants:
        began = time.perf_counter()
        found = _add_program(found, program, topology, with_moments)
        seconds = found.compile_seconds + time.perf_counter() - began
        found = dataclasses.replace(found, compile_seconds=seconds)
        if not found.fits:
            break
    return found


def _add_program(
    found: Compiled, program: Program, topology: Topology, with_moments: bool
) -> Compiled:
    """The findings with those of one more program: the larger memory counts."""
    try:
        executable = program.lower(with_moments=with_moments).compile()
    except jax.errors.JaxRuntimeError as error:
        # Some compilers refuse what does not fit; others leave it to be found below.
        if OUT_OF_MEMORY not in str(error):
            raise
        reason = _out_of_memory_reason(str(error))
        return dataclasses.replace(found, fits=False, reason=reason)
    analysis = executable.memory_analysis()
    assert analysis, "every compiler named in `topologies` analyses memory"
    memory = Memory(
        arguments=analysis.argument_size_in_bytes,
        temporaries=analysis.temp_size_in_bytes,
        limit=topology.chip.memory,
    )
    if found.memory is None or memory.peak > found.memory.peak:
        found = dataclasses.replace(found, memory=memory)
    # Those of an ordinary step stand for all.
    if not with_moments:
        collectives = hlo.collectives(executable.as_text() or "")
        found = dataclasses.replace(found, collectives=collectives)
    if memory.peak > memory.limit:
        peak, limit = memory.peak / GIB, memory.limit / GIB
        reason = f"arguments and temporaries take {peak:.1f} of {limit:.1f} GiB"
        found = dataclasses.replace(found, fits=False, reason=reason)
    return found


def _out_of_memory_reason(error: str) -> str:
    """The first line; where that is only a title, also what memory ran out for."""
    reason, *details = error.splitlines()
    if reason.endswith(":") and details:
        instruction, _, _ = details[0].partition(" = ")
        reason = f"{reason} {instruction}"
    return re.sub(r"\s+", " ", reason)


def smallest_change(experiment: Experiment, topology: Topology) -> str:
    """The first change that fits, as overrides of the config; or that none does.

    Compiling takes minutes, and memory only falls along a group of changes. So the last
    of a group is tried first: where it does not fit, none of them does; where it does,
    bisection finds the first.

    Returns:
      Overrides such as `--config.execution.accumulation=2`, or a sentence.
    """

    def fits(changes: Changes) -> bool:
        values = config.to_dict(experiment)
        for name, value in changes.items():
            section, field = name.split(".")
            values[section][field] = value
        try:
            changed = config.from_dict(values)
            program = build(changed, topology.devices, topology.slices)
        except ConfigError:
            # Devices do not divide what was changed.
            return False
        return compile_programs(program, topology).fits

    now = layout.resolve(experiment, topology.devices, topology.slices)
    for group in _changes(experiment, now):
        if not fits(group[-1]):
            continue
        # The last is known to fit, so that only those before it are compiled again.
        first = bisect_left(group, True, hi=len(group) - 1, key=fits)
        overrides = [f"--config.{name}={value}" for name, value in group[first].items()]
        return " ".join(overrides)
    return NOTHING_FITS


def _changes(experiment: Experiment, now: layout.Layout) -> Iterator[list[Changes]]:
    """Groups of changes, each with less memory towards its end.

    Smaller microbatches come first, as they cost least. Then blocks that were unrolled
    become a loop, then remat becomes full, and last data-parallel replicas become shards,
    each with one row. Blocks that stay unrolled under full remat are not tried, as
    nobody has measured them.
    """
    mesh = now.mesh
    # Rows per device and step; microbatches must divide them.
    rows = experiment.global_batch // (mesh.data * mesh.fsdp * mesh.expert)
    splits = [count for count in range(now.microbatches, rows + 1) if rows % count == 0]
    if splits[1:]:
        yield [{"execution.accumulation": count} for count in splits[1:]]
    # Each of these is kept in the groups that follow.
    kept: Changes = {}
    for field, least in (("unroll", False), ("remat", "full")):
        if getattr(now.kernels, field) != least:
            kept[f"execution.{field}"] = least
            yield [{"execution.accumulation": count, **kept} for count in splits]
    # Fewer and fewer replicas of the parameters, in as many more shards.
    for data in range(mesh.data - 1, 0, -1):
        if mesh.data % data == 0:
            fsdp = mesh.fsdp * mesh.data // data
            sharded = {"mesh.data": data, "mesh.fsdp": fsdp}
            yield [{**sharded, **kept, "execution.accumulation": rows}]
