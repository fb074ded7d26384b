"""How is a study run on this machine? The subcommand `sweep`.

Local sweep: each run is a process of its own, `sparsecod train` and then `sparsecod analyze`,
so that one that dies takes no other along. What has been done is read from the run directories
alone: the sweep may be killed at any time and started again.
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

# -P: nothing in the working folder is imported.
SPARSECOD = (sys.executable, "-P", "-m", "sparsecod_jax")
POLL = 0.2  # seconds
BUSY = 10.0  # seconds until a run is tried again that another process trains


@dataclasses.dataclass
class _Job:
    """A run that is not finished, and how its attempts went."""

    run: Run
    run_dir: RunDir
    not_before: float = 0.0  # by the monotonic clock
    deaths: int = 0  # attempts in a row that died without a newer checkpoint
    reached: int = 0  # the newest checkpoint before the last attempt


@dataclasses.dataclass
class _Attempt:
    """A process that trains or scores a run now."""

    job: _Job
    process: subprocess.Popen
    environment: dict[str, str]  # what it adds to the sweep's own


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
      Preempted: the time is over, or SIGTERM, SIGINT or SIGHUP came; start again to resume.
        Runs save before that, unless the signal comes twice.
      SparsecodError: some runs failed; the message names them. The others are finished.
    """
    _check_options(jobs, max_hours)
    study = load(spec)
    runs = expand(study)
    if dry_run:
        return "\n".join(f"{run.name}  {' '.join(run.overrides)}" for run in runs)
    buckets.check_named(*(run.experiment.data.path for run in runs))
    environments = gpus.environments(min(jobs, len(runs)))
    directory = _local_directory(workdir)
    # Refuses a folder of somebody else before anything is written.
    locate(directory, study, runs)
    files.make_folder(directory.path)
    with locked(directory.path):
        run_dirs = begin(directory, spec, study, runs)
        _prepare_data(runs)
        deadline = None if max_hours is None else time.monotonic() + 3600 * max_hours
        waiting = [_Job(run, run_dirs[run.name]) for run in runs]
        failed = _Sweep(study, directory, deadline, waiting, environments).finish()
    if failed:
        raise SparsecodError(
            f"{len(failed)} of {len(runs)} runs did not finish ({', '.join(failed)}):"
            f" see {directory.logs}"
        )
    statuses = {
        run.name: describe(study, run, run_dirs[run.name]).status for run in runs
    }
    return "\n".join(f"{name}  {status}" for name, status in statuses.items())


def _check_options(jobs: int, max_hours: float | None) -> None:
    if jobs < 1:
        raise ConfigError(f"--jobs={jobs} is below 1: raise it")
    if max_hours is not None and max_hours <= 0:
        raise ConfigError(f"--max_hours={max_hours} is not above 0: raise it")


def _local_directory(workdir: str) -> StudyDir:
    directory = StudyDir(files.absolute(workdir))
    if files.is_remote(directory.path):
        raise ConfigError(
            "a sweep on this machine keeps its logs here:"
            f" give a local --workdir, not {workdir}"
        )
    return directory


def _prepare_data(runs: list[Run]) -> None:
    """Makes the data that is not there, once for all runs that share it."""
    by_path = {run.experiment.data.path: run.experiment for run in runs}
    for path, experiment in by_path.items():
        if (files.absolute(path) / MANIFEST).exists():
            continue
        arguments = prepare_arguments(experiment)
        ended = subprocess.run([*SPARSECOD, *arguments], check=False)
        if ended.returncode:
            raise ConfigError(
                f"`{prepare_command(experiment)}` failed with {ended.returncode}:"
                f" make {path} by hand first"
            )


class _Sweep:
    """One attempt at a study: every job is waiting, running, finished or failed."""

    def __init__(
        self,
        study: Study,
        directory: StudyDir,
        deadline: float | None,
        waiting: list[_Job],
        environments: list[dict[str, str]],
    ):
        self._study = study
        self._directory = directory
        self._deadline = deadline  # by the monotonic clock
        self._waiting = waiting
        self._running: list[_Attempt] = []
        self._failed: list[str] = []
        # One for each run that may run at a time.
        self._free_environments = environments
        # Set by the signal handlers, which do nothing else: the loop reads them.
        self._stopped_by: str | None = None
        self._first_signal_at: float | None = None  # by the monotonic clock
        self._kill_at_once = False

    def finish(self) -> list[str]:
        """Runs all jobs to their end; returns the names of the runs that failed.

        Raises:
          Preempted: the deadline or a signal came first; the runs have saved and ended.
        """
        with self._signals():
            while self._waiting or self._running:
                self._reap()
                if self._deadline is not None and time.monotonic() > self._deadline:
                    self._stopped_by = self._stopped_by or "the time is over"
                if self._stopped_by:
                    self._stop()
                    unfinished = len(self._waiting) + len(self._running)
                    raise Preempted(
                        f"{self._stopped_by}, {unfinished} runs are not finished:"
                        " start again to resume"
                    )
                self._start_ready()
                time.sleep(POLL)
        return self._failed

    def _reap(self) -> None:
        """Takes out the processes that have ended."""
        ended = [each for each in self._running if each.process.poll() is not None]
        for attempt in ended:
            self._running.remove(attempt)
            self._free_environments.append(attempt.environment)
            self._after(attempt.job, attempt.process.returncode)

    def _start_ready(self) -> None:
        """Starts as many waiting jobs as may run beside those that do."""
        now = time.monotonic()
        ready = [job for job in self._waiting if job.not_before <= now]
        for job in ready[: len(self._free_environments)]:
            self._waiting.remove(job)
            left = remaining(self._study, job.run, job.run_dir)
            if not left:
                continue  # finished
            # Several environments may name one GPU: the job goes where fewest run.
            in_use = [attempt.environment for attempt in self._running]
            environment = min(self._free_environments, key=in_use.count)
            self._free_environments.remove(environment)
            process = self._start(job, left[0], environment)
            self._running.append(_Attempt(job, process, environment))

    def _start(
        self, job: _Job, arguments: list[str], environment: dict[str, str]
    ) -> subprocess.Popen:
        log_phase(f"{job.run.name}: {arguments[0]}")
        job.reached = job.run_dir.newest_checkpoint()
        files.make_folder(self._directory.logs)
        with files.open_log(self._directory.logs / f"{job.run.name}.log") as log:
            # A session of its own, so that Ctrl-C reaches the sweep alone, which then
            # asks its runs to save.
            return subprocess.Popen(
                [*SPARSECOD, *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ | environment,
            )

    def _after(self, job: _Job, code: int) -> None:
        """Decides by the exit code whether a run is tried again."""
        if code == Fenced.exit_code:
            job.not_before = time.monotonic() + BUSY
        elif code not in (0, Preempted.exit_code):
            if job.run_dir.newest_checkpoint() > job.reached:
                job.deaths = 0
            job.deaths += 1
            log_phase(f"{job.run.name} ended with {code}")
        if code in FINAL or job.deaths >= ATTEMPTS:
            self._failed.append(job.run.name)
        else:
            # First in the queue: what is left of it, if anything, is next.
            self._waiting.insert(0, job)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Has signals to stop recorded instead of ending this process."""

        def stop(number, frame):
            now = time.monotonic()
            if self._first_signal_at is None:
                self._first_signal_at = now
                self._stopped_by = f"{signal.Signals(number).name} came"
            # A terminal and a shell may both send the same signal: that is one.
            elif number in IMPATIENT and now - self._first_signal_at > SAME:
                self._kill_at_once = True

        # A signal that is ignored, as under nohup, stays ignored.
        heeded = [
            number for number in STOPS if signal.getsignal(number) is not signal.SIG_IGN
        ]
        before = {number: signal.signal(number, stop) for number in heeded}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self) -> None:
        """Has each run save, and waits for it, unless a second signal comes."""
        processes = [attempt.process for attempt in self._running]
        for process in processes:
            process.terminate()
        while any(process.poll() is None for process in processes):
            if self._kill_at_once:
                for process in processes:
                    process.kill()
            time.sleep(POLL)
