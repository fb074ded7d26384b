"""How does one run of the array go? Its commands one after the other, and then what their exit code asks Slurm for.

Runs on the first node of the run: `python -m launch.slurm_task RUNS.json`.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from etils import epath

from sparsecod_jax.errors import ATTEMPTS, FINAL, Fenced, Preempted
from sparsecod_jax.storage.ownership import locked
from sparsecod_jax.storage.records import read_json, write_json
from sparsecod_jax.storage.rundir import RunDir

ALONE = ["--nodes=1", "--ntasks=1"]


def main(file: str) -> int:
    """Runs the task that SLURM_ARRAY_TASK_ID names; returns the exit code for Slurm to show."""
    signal.signal(
        signal.SIGTERM, lambda *_: None
    )  # the run is told too, and saves; then it is put back into the queue here
    told = json.loads(Path(file).read_text())
    run = told["runs"][int(os.environ["SLURM_ARRAY_TASK_ID"])]
    log = Path(told["study"]) / "logs" / f"{run['name']}.log"
    with open(log, "ab") as output:
        os.dup2(output.fileno(), sys.stdout.fileno())
        os.dup2(output.fileno(), sys.stderr.fileno())
    place = RunDir(epath.Path(run["workdir"]))
    reached = place.newest_checkpoint()
    code = _run(run["commands"])
    if code in (0, *FINAL, Fenced.exit_code):
        if code in FINAL:
            _record(place, f"ended with exit code {code}: see {log}")
        return code
    if (
        code != Preempted.exit_code
        and (
            dead := _count(Path(file).parent, run, place.newest_checkpoint() > reached)
        )
        >= ATTEMPTS
    ):
        _record(
            place,
            f"{dead} attempts in a row died without a newer checkpoint, the last with exit code {code}: see {log}",
        )
        return code
    _requeue()
    return code


def _run(commands: list[list[str]]) -> int:
    """The exit code of the first command that fails, of its highest process; 0 if none does."""
    surroundings = dict(os.environ)
    if cpus := os.environ.get("SLURM_CPUS_PER_TASK"):  # which srun by itself forgets
        surroundings["SRUN_CPUS_PER_TASK"] = cpus
    for number, command in enumerate(commands):
        # Processes leave one after the other, each when its part is saved: the first must not end the others.
        srun = ["srun", "--kill-on-bad-exit=0", *(ALONE if number else [])]
        code = subprocess.run(
            [*srun, *command], env=surroundings, check=False
        ).returncode
        if code:
            return code if code > 0 else 128 - code
    return 0


def _count(folder: Path, run: dict[str, Any], progressed: bool) -> int:
    """How many attempts in a row have now died without a newer checkpoint, since the run was last sent."""
    kept, job = (
        epath.Path(folder / "retries" / f"{run['name']}.json"),
        os.environ["SLURM_ARRAY_JOB_ID"],
    )
    before = read_json(kept) if kept.exists() else {}
    dead = 1 if progressed or before.get("job") != job else before["dead"] + 1
    kept.parent.mkdir(exist_ok=True)
    write_json(kept, {"job": job, "dead": dead})
    return dead


def _requeue() -> None:
    """Puts this task back into the queue, unless somebody cancelled it, which asks it to save just as preemption does."""
    task = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    state = subprocess.run(
        ["squeue", "--noheader", f"--jobs={task}", "--format=%T"],
        capture_output=True,
        text=True,
        check=False,
    )
    if state.stdout.strip() == "RUNNING":
        subprocess.run(["scontrol", "requeue", task], check=False)


def _record(place: RunDir, reason: str) -> None:
    """Says in the run directory why nobody goes on with the run, where the run itself could not."""
    place.path.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(Fenced), locked(place.path):
        if place.read_status() not in ("finished", "diverged", "failed"):
            place.set_status("failed", reason=reason)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
