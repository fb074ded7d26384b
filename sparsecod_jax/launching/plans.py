"""What would each run of a study need on the devices it is to get?"""

import argparse
import hashlib
import json
from typing import Any

from sparsecod_jax import config
from sparsecod_jax.config import counts
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.launching import package
from sparsecod_jax.parallel.processes import log_phase
from sparsecod_jax.plan import topologies
from sparsecod_jax.plan.plan import GIB, plan
from sparsecod_jax.storage import files, records
from sparsecod_jax.study.study import Run
from sparsecod_jax.study.study_dir import PLANS

COLUMNS = ("run", "hosts", "chips", "peak GiB", "tokens", "FLOPs", "chip-hours")


def find(runs: list[Run], args: argparse.Namespace) -> dict[str, dict[str, Any] | None]:
    """The plan of each run by its name; None without a topology. Runs that differ in seeds alone are compiled once, and kept.

    Raises:
      ConfigError: there is no such topology, it does not divide a run, or --mfu is no share.
    """
    if not 0 < args.mfu <= 1:
        raise ConfigError(
            f"--mfu={args.mfu} is not a share of the peak: use a number above 0 and up to 1, such as 0.4"
        )
    return {run.name: _find(run, args) if args.topology else None for run in runs}


def _find(run: Run, args: argparse.Namespace) -> dict[str, Any]:
    values = config.to_dict(run.experiment)
    values |= {"seed": 0, "data": values["data"] | {"seed": 0, "path": ""}}
    key = hashlib.sha256(
        json.dumps(
            [values, args.topology, args.mfu, package.commit()], sort_keys=True
        ).encode()
    ).hexdigest()[:16]
    kept = files.absolute(args.workdir) / PLANS / f"{key}.json"
    if kept.exists():
        return records.read_json(kept)
    log_phase(f"{run.name}: compiling for {args.topology}")
    topology = topologies.find(args.topology)
    found = plan(run.experiment, topology, args.mfu) | {
        "hosts": len({device.process_index for device in topology.devices})
    }
    files.make_folder(kept.parent)
    records.write_json(kept, found)
    return found


def check(runs: list[Run], found: dict[str, dict[str, Any] | None]) -> None:
    """Refuses runs that do not fit.

    Raises:
      ConfigError: names the first of them and the change that makes it fit.
    """
    for run in runs:
        planned = found[run.name]
        if planned and not planned["fits"]:
            raise ConfigError(
                f"{run.name} does not fit on {planned['topology']} ({planned['reason']}): {planned['change']}"
            )


def table(runs: list[Run], found: dict[str, dict[str, Any] | None]) -> str:
    """The plans of all runs and their total, for people."""
    totals = [0, 0.0, 0.0]
    rows: list[tuple[str, ...]] = [COLUMNS]
    for run in runs:
        tokens = run.experiment.steps * run.experiment.tokens_per_step
        flops = tokens * counts.flops_per_token(
            run.experiment.model, run.experiment.data.seq_len
        )
        planned = found[run.name]
        hours = planned["chip_hours"] if planned else 0.0
        totals = [
            total + more
            for total, more in zip(totals, (tokens, flops, hours), strict=True)
        ]
        described = (
            (planned["hosts"], planned["devices"], _peak(planned))
            if planned
            else ("-", "-", "not planned")
        )
        rows.append(
            (
                run.name,
                *map(str, described),
                f"{tokens:,}",
                f"{flops:.3g}",
                f"{hours:,.1f}" if planned else "-",
            )
        )
    planned = any(found.values())
    rows.append(
        (
            f"{len(runs)} runs",
            "",
            "",
            "",
            f"{totals[0]:,}",
            f"{totals[1]:.3g}",
            f"{totals[2]:,.1f}" if planned else "-",
        )
    )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]
    return "\n".join(
        lines
        if planned
        else [*lines, "not planned: give --topology to know whether runs fit"]
    )


def _peak(planned: dict[str, Any]) -> str:
    if "memory" not in planned:
        return planned["reason"]
    peak, limit = (planned["memory"][name] / GIB for name in ("peak", "limit"))
    return f"{peak:.2f} of {limit:.2f}" + ("" if planned["fits"] else ", does not fit")
