"""How far is each run of a study, and what did it find?"""

import csv
import io
from typing import Any

from etils import epath

from sparsecod_jax import config
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.storage import files, records
from sparsecod_jax.storage.rundir import RunDir
from sparsecod_jax.study.study import Run, Study
from sparsecod_jax.study.study_dir import remaining


def describe(study: Study, run: Run, place: RunDir) -> dict[str, Any]:
    """What the run directory says of a run; `final` is None where it is not finished."""
    said, why = _read(place.status)
    final, why_not = _read(place.final)
    return {
        "name": run.name,
        "arm": run.arm,
        "seed": run.seed,
        "status": "finished" if final else place.read_status(),
        "reason": said.get("reason") or why or why_not,
        "step": run.experiment.steps if final else place.newest_checkpoint(),
        "steps": run.experiment.steps,
        "left": [verb[0] for verb in remaining(study, run, place)],
        "final": final or None,
    }


def _read(file: epath.Path) -> tuple[dict[str, Any], str | None]:
    """What a record holds, nothing where there is none; and why it can't be read."""
    try:
        return (records.read_record(file) if file.exists() else {}), None
    except (OSError, ConfigError) as error:
        return {}, str(error)


def status_table(
    study: Study, runs: list[Run], places: dict[str, RunDir], held: dict[str, str]
) -> str:
    """One line a run: what its directory says, how far its checkpoints are, and what the scheduler says."""
    width = max(len(run.name) for run in runs)
    lines = []
    for run in runs:
        found = describe(study, run, places[run.name])
        progress = f"step {found['step']} of {found['steps']}"
        lines.append(
            f"{run.name:<{width}}  {found['status']!s:<9}  {progress}  scheduler: {held.get(run.name, '-')}"
        )
    return "\n".join(lines)


def collect(
    directory: epath.Path, study: Study, runs: list[Run], places: dict[str, RunDir]
) -> str:
    """Writes results.json and results.csv; returns a summary that names every run with something left to do, and why."""
    rows = [describe(study, run, places[run.name]) for run in runs]
    records.write_json(directory / "results.json", rows)
    files.write(directory / "results.csv", _csv(rows).encode())
    unfinished = [row for row in rows if row["left"]]
    lines = [
        f"{row['name']}  {row['status']}, {' and '.join(row['left'])} left{_because(row)}"
        for row in unfinished
    ]
    return "\n".join(
        [
            f"{len(rows) - len(unfinished)} of {len(rows)} runs are done: {directory / 'results.csv'}",
            *lines,
        ]
    )


def _because(row: dict[str, Any]) -> str:
    return f": {row['reason']}" if row["reason"] else ""


def _csv(rows: list[dict[str, Any]]) -> str:
    flat = []
    for row in rows:
        final = config.flatten({"final": row["final"] or {}})
        flat.append(
            {
                name: value
                for name, value in row.items()
                if name not in ("left", "final")
            }
            | final
        )
    text = io.StringIO()
    writer = csv.DictWriter(
        text,
        list(dict.fromkeys(name for row in flat for name in row)),
        lineterminator="\n",
    )
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()
