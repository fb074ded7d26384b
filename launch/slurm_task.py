"""How does one run of the array proceed? Slurm task: its commands, then what their exit code asks.

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

ONE_PROCESS = ["--nodes=1", "--ntasks=1"]


def main(file: str) -> int:
    """Runs the task of SLURM_ARRAY_TASK_ID; returns the exit code for Slurm to show."""
    # Slurm sends SIGTERM before a time limit, a preemption or a cancellation, to the run and
    # to this process. The run saves; this process stays and puts it back into the queue.
    signal.signal(signal.SIGTERM, lambda *_: None)
    described = json.loads(Path(file).read_text())
    index = int(os.environ["SLURM_ARRAY_TASK_ID"])
    run = described["runs"][index]
    log = Path(described["study"]) / "logs" / f"{run['name']}.log"
    _append_output_to(log)
    run_dir = RunDir(epath.Path(run["workdir"]))
    # Progress is a newer checkpoint than before this attempt.
    step_before = run_dir.newest_checkpoint()
    code = _run(run["commands"])
    # Done, or it would end so again.
    if code in FINAL:
        _record_failure(run_dir, f"ended with exit code {code}: see {log}")
    if code in (0, *FINAL, Fenced.exit_code):
        return code
    # It died. A run that makes progress between deaths is tried for ever, one that does
    # not only a few times.
    if code != Preempted.exit_code:
        progressed = run_dir.newest_checkpoint() > step_before
        failures = _count_failures(Path(file).parent, run, progressed)
        if failures >= ATTEMPTS:
            _record_failure(
                run_dir,
                f"{failures} attempts in a row died without a newer checkpoint,"
                f" the last with exit code {code}: see {log}",
            )
            return code
    _requeue()
    return code


def _append_output_to(log: Path) -> None:
    """Lets this process and all that it starts write to the log of the run."""
    with open(log, "ab") as output:
        os.dup2(output.fileno(), sys.stdout.fileno())
        os.dup2(output.fileno(), sys.stderr.fileno())


def _run(commands: list[list[str]]) -> int:
    """The exit code of the first command that fails, 0 if none does.

    Of its processes it is the highest code.
    """
    environment = dict(os.environ)
    if cpus := os.environ.get("SLURM_CPUS_PER_TASK"):
        environment["SRUN_CPUS_PER_TASK"] = cpus  # which srun by itself forgets
    # Commands run with -P, which leaves out the folder that they run in. But the code that
    # was sent lies there, and must come before any that is installed.
    import_paths = [os.getcwd(), os.environ.get("PYTHONPATH")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, import_paths))
    # Processes leave one after the other, each when its part is saved: the first must not
    # end the others.
    srun = ["srun", "--kill-on-bad-exit=0"]
    for number, command in enumerate(commands):
        # All processes train; what follows is for one alone.
        processes = ONE_PROCESS if number else []
        words = [*srun, *processes, *command]
        code = subprocess.run(words, env=environment, check=False).returncode
        # A negative code is a signal, which shells report so.
        if code:
            return code if code > 0 else 128 - code
    return 0


def _count_failures(folder: Path, run: dict[str, Any], progressed: bool) -> int:
    """How many attempts in a row died without a newer checkpoint.

    The count begins anew when the run is sent again.
    """
    # Requeued tasks keep the number of their job; those of another submission have another.
    job = os.environ["SLURM_ARRAY_JOB_ID"]
    file = epath.Path(folder / "retries" / f"{run['name']}.json")
    before: dict[str, Any] = {}
    if file.exists():
        before = read_json(file)
    failures = 1
    if before.get("job") == job and not progressed:
        failures += before["dead"]
    file.parent.mkdir(exist_ok=True)
    write_json(file, {"job": job, "dead": failures})
    return failures


def _requeue() -> None:
    """Puts this task back into the queue, unless somebody cancelled it.

    To the run a cancellation looks like a preemption: both send SIGTERM.
    """
    job, index = os.environ["SLURM_ARRAY_JOB_ID"], os.environ["SLURM_ARRAY_TASK_ID"]
    task = f"{job}_{index}"
    # A task that was cancelled is no longer RUNNING.
    query = ["squeue", "--noheader", f"--jobs={task}", "--format=%T"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    if done.stdout.strip() == "RUNNING":
        subprocess.run(["scontrol", "requeue", task], check=False)


def _record_failure(run_dir: RunDir, reason: str) -> None:
    """Notes in the run directory why the run ended, where the run itself could not."""
    run_dir.path.mkdir(parents=True, exist_ok=True)
    # Whoever holds the lock writes its own status; a status that is final stays.
    with contextlib.suppress(Fenced), locked(run_dir.path):
        if run_dir.read_status() not in ("finished", "diverged", "failed"):
            run_dir.set_status("failed", reason=reason)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
