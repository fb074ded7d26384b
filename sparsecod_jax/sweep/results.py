"""How far is each run of a study, and what did it find?"""

import csv
import io
from typing import Any

from etils import epath

from sparsecod_jax import config, files
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.rundir import RunDir, read_loosely
from sparsecod_jax.sweep.study import Run, Study
from sparsecod_jax.sweep.study_dir import remaining


def describe(study: Study, run: Run, place: RunDir) -> dict[str, Any]:
    """What the run directory says of a run; `final` is None where it is not finished."""
    status, reason, final = place.read_status(), read_loosely(place.status).get("reason"), None
    try:
        final = files.read_record(place.final) if place.final.exists() else None
    except ConfigError as error:  # which should not hide the other runs
        status, reason = "damaged", str(error)
    return {
        "name": run.name,
        "arm": run.arm,
        "seed": run.seed,
        "status": "finished" if final else status,
        "reason": reason,
        "step": run.experiment.steps if final else place.newest_checkpoint(),
        "steps": run.experiment.steps,
        "left": [verb[0] for verb in remaining(study, run, place)],
        "final": final,
    }


def status_table(study: Study, runs: list[Run], places: dict[str, RunDir], held: dict[str, str]) -> str:
    """One line a run: what its directory says, how far its checkpoints are, and what the scheduler says."""
    width = max(len(run.name) for run in runs)
    lines = []
    for run in runs:
        found = describe(study, run, places[run.name])
        progress = f"step {found['step']} of {found['steps']}"
        lines.append(f"{run.name:<{width}}  {found['status']:<9}  {progress}  scheduler: {held.get(run.name, '-')}")
    return "\n".join(lines)


def collect(directory: epath.Path, study: Study, runs: list[Run], places: dict[str, RunDir]) -> str:
    """Writes results.json and results.csv; returns a summary that names every run with something left to do, and why."""
    rows = [describe(study, run, places[run.name]) for run in runs]
    files.write_json(directory / "results.json", rows)
    files.write(directory / "results.csv", _csv(rows).encode())
    unfinished = [row for row in rows if row["left"]]
    lines = [f"{row['name']}  {row['status']}, {' and '.join(row['left'])} left{_because(row)}" for row in unfinished]
    return "\n".join([f"{len(rows) - len(unfinished)} of {len(rows)} runs are done: {directory / 'results.csv'}", *lines])


def _because(row: dict[str, Any]) -> str:
    return f": {row['reason']}" if row["reason"] else ""


def _csv(rows: list[dict[str, Any]]) -> str:
    flat = []
    for row in rows:
        final = config.flatten({"final": row["final"] or {}})
        flat.append({name: value for name, value in row.items() if name not in ("left", "final")} | final)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in flat for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()
