"""How is a study run on this machine? The verb `sweep`.

Each run is a process of its own, `sparsecod train` and then `sparsecod analyze`, so that one that dies takes no other along. What has been
done is read from the run directories alone: the sweep may be killed at any time and started again.
"""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

from sparsecod_jax.data.store import MANIFEST, prepare_arguments, prepare_command
from sparsecod_jax.errors import (
    ATTEMPTS,
    FINAL,
    ConfigError,
    Fenced,
    Preempted,
    SparsecodError,
)
from sparsecod_jax.parallel.processes import log_phase
from sparsecod_jax.shell.stopping import IMPATIENT, SAME, STOPS
from sparsecod_jax.storage import buckets, files
from sparsecod_jax.storage.ownership import locked
from sparsecod_jax.storage.rundir import RunDir
from sparsecod_jax.study import gpus
from sparsecod_jax.study.results import describe
from sparsecod_jax.study.study import Run, Study, expand, load
from sparsecod_jax.study.study_dir import StudyDir, begin, locate, remaining

SPARSECOD = (
    sys.executable,
    "-P",
    "-m",
    "sparsecod_jax",
)  # -P: nothing in the working folder is imported
POLL = 0.2  # seconds
BUSY = 10.0  # seconds until a run is tried again that another process is at


@dataclasses.dataclass
class _Job:
    """A run that is not finished, and how its attempts went."""

    run: Run
    place: RunDir
    not_before: float = 0.0
    dead: int = 0  # attempts in a row that died without a newer checkpoint
    reached: int = 0  # the newest checkpoint before the last attempt


def sweep(
    spec: str,
    workdir: str,
    *,
    jobs: int = 1,
    max_hours: float | None = None,
    dry_run: bool = False,
) -> str:
    """Runs what of a study is not finished, and returns a table of all runs.

    Args:
      spec: configs/sweeps/x.py:scale.
      jobs: runs at a time; several share out the GPUs of this machine.
      max_hours: after which those under way are stopped at a checkpoint.
      dry_run: only lists the runs; nothing is written.

    Raises:
      ConfigError: the study, its data or the directory can't be used; nothing was trained.
      Fenced: another sweep is at work in `workdir`.
      Preempted: the time is over, or SIGTERM, SIGINT or SIGHUP came; start again to go on. Runs save before that, unless
        it comes twice.
      SparsecodError: some runs failed; the message names them. The others are finished.
    """
    if jobs < 1:
        raise ConfigError(f"--jobs={jobs} is below 1: raise it")
    if max_hours is not None and max_hours <= 0:
        raise ConfigError(f"--max_hours={max_hours} is not above 0: raise it")
    study = load(spec)
    runs = expand(study)
    if dry_run:
        return "\n".join(f"{run.name}  {' '.join(run.overrides)}" for run in runs)
    buckets.check_named(*(run.experiment.data.path for run in runs))
    environments = gpus.environments(min(jobs, len(runs)))
    directory = StudyDir(files.absolute(workdir))
    if files.is_remote(directory.path):
        raise ConfigError(
            f"a sweep on this machine keeps its logs here: give a local --workdir, not {workdir}"
        )
    locate(
        directory, study, runs
    )  # refuses another's folder before anything is written
    files.make_folder(directory.path)
    with locked(directory.path):
        places = begin(directory, spec, study, runs)
        _prepare_data(runs)
        deadline = None if max_hours is None else time.monotonic() + 3600 * max_hours
        failed = _Sweep(study, directory, deadline).go(
            [_Job(run, places[run.name]) for run in runs], environments
        )
    table = "\n".join(
        f"{run.name}  {describe(study, run, places[run.name])['status']}"
        for run in runs
    )
    if failed:
        raise SparsecodError(
            f"{len(failed)} of {len(runs)} runs did not finish ({', '.join(failed)}): see {directory.logs}"
        )
    return table


def _prepare_data(runs: list[Run]) -> None:
    """Makes the data that is not there, once for all runs that share it."""
    for run in {run.experiment.data.path: run for run in runs}.values():
        path = run.experiment.data.path
        if (files.absolute(path) / MANIFEST).exists():
            continue
        code = subprocess.run(
            [*SPARSECOD, *prepare_arguments(run.experiment)], check=False
        ).returncode
        if code:
            raise ConfigError(
                f"`{prepare_command(run.experiment)}` failed with {code}: make {path} by hand first"
            )


class _Sweep:
    """One attempt at a study."""

    def __init__(self, study: Study, directory: StudyDir, deadline: float | None):
        self._study, self._directory, self._deadline = study, directory, deadline
        self._stopped_by: str | None = None
        self._asked: float | None = (
            None  # when a signal came first, by the monotonic clock
        )
        self._at_once = False

    def go(self, waiting: list[_Job], free: list[dict[str, str]]) -> list[str]:
        """Returns the names of the runs that did not finish; `free` has the environment of each that may run at a time."""
        running: list[tuple[_Job, subprocess.Popen, dict[str, str]]] = []
        failed: list[str] = []
        with self._signals():
            while waiting or running:
                for job, process, environment in [
                    each for each in running if each[1].poll() is not None
                ]:
                    running.remove((job, process, environment))
                    free.append(environment)
                    self._after(job, process.returncode, waiting, failed)
                if self._deadline is not None and time.monotonic() > self._deadline:
                    self._stopped_by = self._stopped_by or "the time is over"
                if self._stopped_by:
                    self._stop([process for _, process, _ in running])
                    raise Preempted(
                        f"{self._stopped_by}, {len(waiting) + len(running)} runs are not finished: start again to go on"
                    )
                ready = [job for job in waiting if job.not_before <= time.monotonic()]
                for job in ready[: len(free)]:
                    waiting.remove(job)
                    for argv in remaining(self._study, job.run, job.place)[:1]:
                        environment = min(
                            free, key=[each[2] for each in running].count
                        )  # where fewest are
                        free.remove(environment)
                        running.append(
                            (job, self._start(job, argv, environment), environment)
                        )
                time.sleep(POLL)
        return failed

    def _start(
        self, job: _Job, argv: list[str], environment: dict[str, str]
    ) -> subprocess.Popen:
        log_phase(f"{job.run.name}: {argv[0]}")
        job.reached = job.place.newest_checkpoint()
        files.make_folder(self._directory.logs)
        with files.open_log(self._directory.logs / f"{job.run.name}.log") as log:
            # A session of its own, so that Ctrl-C reaches the sweep alone, which then asks its runs to save.
            return subprocess.Popen(
                [*SPARSECOD, *argv],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ | environment,
            )

    def _after(
        self, job: _Job, code: int, waiting: list[_Job], failed: list[str]
    ) -> None:
        """Decides by the exit code whether a run is tried again."""
        if code == Fenced.exit_code:
            job.not_before = time.monotonic() + BUSY
        elif code not in (0, Preempted.exit_code):
            job.dead = (
                1 if job.place.newest_checkpoint() > job.reached else job.dead + 1
            )
            log_phase(f"{job.run.name} ended with {code}")
        if code in FINAL or job.dead >= ATTEMPTS:
            failed.append(job.run.name)
        else:
            waiting.insert(0, job)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def stop(number, frame):
            now = time.monotonic()
            if self._asked is None:
                self._asked, self._stopped_by = (
                    now,
                    f"{signal.Signals(number).name} came",
                )
            elif number in IMPATIENT and now - self._asked > SAME:
                self._at_once = True

        heard = [
            number for number in STOPS if signal.getsignal(number) is not signal.SIG_IGN
        ]
        before = {number: signal.signal(number, stop) for number in heard}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, processes: list[subprocess.Popen]) -> None:
        """Has each run save, and waits for it; whoever asks again does not wait."""
        for process in processes:
            process.terminate()
        while any(process.poll() is None for process in processes):
            if self._at_once:
                for process in processes:
                    process.kill()
            time.sleep(POLL)
