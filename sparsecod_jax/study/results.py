"""How far is each run of a study, and what did it find?

Results: one row per run, for a table in the terminal, results.json and results.csv.
"""

import csv
import dataclasses
import io
from typing import Any

from etils import epath

from sparsecod_jax import config
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.storage import files, records
from sparsecod_jax.storage.rundir import RunDir, Status
from sparsecod_jax.study.study import Run, Study
from sparsecod_jax.study.study_dir import remaining


@dataclasses.dataclass(frozen=True)
class RunResult:
    """One row: what the directory of a run tells."""

    name: str
    arm: str
    seed: int
    status: Status
    reason: str | None  # why it did not finish, or why its files can't be read
    step: int  # of the newest checkpoint
    steps: int  # when it is finished
    left: list[str]  # subcommands that are not done: train, analyze
    final: dict[str, Any] | None  # final.json, None until the run is finished


def describe(study: Study, run: Run, run_dir: RunDir) -> RunResult:
    """The result of a run, as far as it is."""
    status_record, status_error = _read(run_dir.status)
    final, final_error = _read(run_dir.final)
    steps = run.experiment.steps
    return RunResult(
        name=run.name,
        arm=run.arm,
        seed=run.seed,
        status="finished" if final else run_dir.read_status(),
        reason=status_record.get("reason") or status_error or final_error,
        step=steps if final else run_dir.newest_checkpoint(),
        steps=steps,
        left=[subcommand for subcommand, *_ in remaining(study, run, run_dir)],
        final=final or None,
    )


def _read(file: epath.Path) -> tuple[dict[str, Any], str | None]:
    """The content of a record, empty where there is none; and why it can't be read."""
    try:
        if not file.exists():
            return {}, None
        return records.read_record(file), None
    except (OSError, ConfigError) as error:
        return {}, str(error)


def status_table(
    study: Study, runs: list[Run], run_dirs: dict[str, RunDir], states: dict[str, str]
) -> str:
    """One line per run: its status, its newest checkpoint, and the scheduler's state.

    Args:
      states: the scheduler's, by name of a run; it may not know all.
    """
    width = max(len(run.name) for run in runs)
    lines = []
    for run in runs:
        row = describe(study, run, run_dirs[run.name])
        progress = f"step {row.step} of {row.steps}"
        state = states.get(run.name, "-")
        lines.append(
            f"{run.name:<{width}}  {row.status!s:<9}  {progress}  scheduler: {state}"
        )
    return "\n".join(lines)


def collect(
    directory: epath.Path, study: Study, runs: list[Run], run_dirs: dict[str, RunDir]
) -> str:
    """Writes results.json and results.csv.

    Returns:
      A summary that names every run with something left to do, and why.
    """
    rows = [describe(study, run, run_dirs[run.name]) for run in runs]
    values = [dataclasses.asdict(row) for row in rows]
    records.write_json(directory / "results.json", values)
    table = directory / "results.csv"
    files.write(table, _csv(rows).encode())
    unfinished = [row for row in rows if row.left]
    done = len(rows) - len(unfinished)
    lines = [f"{done} of {len(rows)} runs are done: {table}"]
    for row in unfinished:
        line = f"{row.name}  {row.status}, {' and '.join(row.left)} left"
        if row.reason:
            line += f": {row.reason}"
        lines.append(line)
    return "\n".join(lines)


def _csv(rows: list[RunResult]) -> str:
    """Rows with a column per number of final.json, called final.NAME."""
    table = []
    for row in rows:
        cells = dataclasses.asdict(row)
        del cells["left"]
        final = cells.pop("final") or {}
        table.append(cells | config.flatten({"final": final}))
    columns = dict.fromkeys(name for cells in table for name in cells)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()
