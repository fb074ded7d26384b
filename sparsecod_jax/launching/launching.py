"""How is a study sent to another engine? Launchers: what Slurm, JobSet and TPU VMs share.

Each file of launch/ adds the rest. What is to be sent is read from the run directories.
What the scheduler reports is a hint, which only keeps a run from being sent while the
scheduler still holds it.

    plan     what each run needs on its devices
    render   writes what submit would send
    submit   sends the runs that are neither done nor with the scheduler
    status   how far each run is, and the scheduler's state of it
    collect  writes the results of all runs into the study directory
    cancel   ends the runs that the scheduler holds
"""

import contextlib
import dataclasses
import hashlib
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from etils import epath

from sparsecod_jax.data.store import MANIFEST, prepare_command
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.launching import package
from sparsecod_jax.launching.package import CodePackage
from sparsecod_jax.shell import options
from sparsecod_jax.shell.arguments import formerly
from sparsecod_jax.shell.ending import exit_code_of
from sparsecod_jax.storage import buckets, files
from sparsecod_jax.storage.ownership import locked
from sparsecod_jax.storage.rundir import RunDir
from sparsecod_jax.study import results
from sparsecod_jax.study.study import Run, Study, expand, load
from sparsecod_jax.study.study_dir import StudyDir, begin, commands, locate, remaining

# States in `Engine.query` of a run with which the scheduler will continue.
LIVE = ("pending", "running")


@dataclasses.dataclass(frozen=True)
class Job:
    """A run as an engine sees it."""

    # Of the run, unique in its study only: [a-z]([-a-z0-9]*[a-z0-9])?, at most 40 letters.
    name: str
    index: int  # of the run in its study, the same at every submission
    workdir: str  # run directory, an absolute path or gs:// URL
    # Argument lists: train, by every process, and then maybe analyze, by one alone.
    commands: tuple[tuple[str, ...], ...]
    # As `sparsecod plan` takes it: v5p:4x4x4, h100:2x8; empty where none was given.
    topology: str


class Engine(Protocol):
    """What a file of launch/ adds."""

    # slurm, jobset or tpu_vm: also the folder of the study directory that keeps what was
    # rendered.
    name: str
    # Whether its hosts see the files of this one: then this checkout may be the code, and
    # paths may be local.
    shares_files: bool

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Adds the engine's own options, to every subcommand."""
        ...

    def render(
        self, jobs: list[Job], code_package: CodePackage, args: Namespace
    ) -> dict[str, bytes]:
        """What submit sends, by file name: the same bytes for the same arguments.

        Raises:
          ConfigError: it can't be sent.
        """
        ...

    def submit(self, files: dict[str, Path], jobs: list[Job], args: Namespace) -> None:
        """Sends `jobs`, whose rendered files are local; harmless when repeated."""
        ...

    def query(self, jobs: list[Job], args: Namespace) -> dict[str, str]:
        """The scheduler's state by run name: one of LIVE, or any other word.

        Runs that the scheduler does not know are left out.
        """
        ...

    def cancel(self, jobs: list[Job], args: Namespace) -> None:
        """Ends those of `jobs` that the scheduler holds."""
        ...


def study_id(args: Namespace) -> str:
    """Eight hexadecimal digits, which make the names of jobs unique in a cluster.

    Each study directory has another eight.
    """
    path = os.fspath(_study_path(args))
    return hashlib.sha256(path.encode()).hexdigest()[:8]


def main(engine: Engine, argv: list[str]) -> int:
    """The command line of launch/ENGINE.py.

    Returns:
      The exit code, one of those in `errors`.
    """
    args = _parser(engine).parse_args(argv)

    def run() -> None:
        options.check(args, argv)
        args.workdir = os.fspath(_study_path(args))
        _SUBCOMMANDS[args.subcommand](engine, args)

    return exit_code_of(f"{engine.name} {args.subcommand}", run)


def _parser(engine: Engine) -> ArgumentParser:
    """Options that all subcommands share, and the engine's own."""
    parser = ArgumentParser(
        prog=f"launch/{engine.name}.py",
        description="Sends a study elsewhere.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "subcommand",
        choices=_SUBCOMMANDS,
        metavar="SUBCOMMAND",
        help=", ".join(_SUBCOMMANDS),
    )
    parser.add_argument(
        "--sweep",
        required=True,
        help="study file, configs/sweeps/depth.py:nano or the like",
    )
    parser.add_argument(
        "--workdir",
        required=True,
        help="directory of the study, a path that all hosts see or gs://BUCKET/NAME",
    )
    parser.add_argument(
        "--topology",
        default="",
        help="devices of one run, as for `sparsecod plan`: v5p:4x4x4, h100:2x8",
    )
    parser.add_argument(
        "--mfu",
        type=float,
        default=0.4,
        help="assumed model FLOPs utilisation, for chip-hours (default %(default)s)",
    )
    parser.add_argument(
        "--data_path",
        help="data directory in place of the runs' own data.path, such as gs://BUCKET/NAME",
    )
    formerly(parser, "--data", "data_path")
    package.add_arguments(parser)
    engine.add_arguments(parser)
    return parser


def _study_path(args: Namespace) -> epath.Path:
    return files.absolute(args.workdir)


@dataclasses.dataclass(frozen=True)
class _StudyOnDisk:
    """A study with the directories of its runs, by name."""

    study: Study
    runs: list[Run]
    run_dirs: dict[str, RunDir]

    def jobs(self, args: Namespace) -> list[Job]:
        """All runs, for an engine."""
        return [self._job(index, run, args) for index, run in enumerate(self.runs)]

    def _job(self, index: int, run: Run, args: Namespace) -> Job:
        run_dir = self.run_dirs[run.name]
        subcommands = commands(self.study, run, run_dir)
        # The first one trains, and what it trained on the others find in the run.
        if args.data_path:
            subcommands[0].append(f"--config.data.path={args.data_path}")
        program = ("python", "-P", "-m", "sparsecod_jax")
        return Job(
            name=run.name,
            index=index,
            workdir=os.fspath(run_dir.path),
            commands=tuple((*program, *words) for words in subcommands),
            topology=args.topology,
        )

    def not_to_be_sent(self, states: dict[str, str]) -> dict[str, str]:
        """Names of runs, and why they are left out.

        Args:
          states: the scheduler's, by name of a run.
        """
        reasons = {}
        for run in self.runs:
            reason = self._reason_not_to_send(run, states.get(run.name))
            if reason:
                reasons[run.name] = reason
        return reasons

    def _reason_not_to_send(self, run: Run, state: str | None) -> str | None:
        run_dir = self.run_dirs[run.name]
        if not remaining(self.study, run, run_dir):
            return "finished"
        if results.describe(self.study, run, run_dir).status == "diverged":
            return "diverged, as it would again"
        if state in LIVE:
            return state
        return None


def _open(args: Namespace) -> _StudyOnDisk:
    """The study as it was sent before."""
    buckets.check_named(args.workdir)
    directory = StudyDir(_study_path(args))
    if not directory.described.exists():
        raise ConfigError(
            f"{directory.path} holds no study: submit it first, or correct --workdir"
        )
    study = load(args.sweep)
    return _begin(study, expand(study), args)


def _begin(study: Study, runs: list[Run], args: Namespace) -> _StudyOnDisk:
    """The study, written to its directory where it is new."""
    directory = StudyDir(_study_path(args))
    run_dirs = begin(directory, args.sweep, study, runs)
    return _StudyOnDisk(study, runs, run_dirs)


def _check(engine: Engine, study: Study, runs: list[Run], args: Namespace) -> None:
    """Refuses what can't work from there, before anything is written.

    Raises:
      ConfigError: paths are not seen from there, or code does not get there.
    """
    if not engine.shares_files:
        if not args.topology:
            raise ConfigError(
                "--topology says which devices a run gets:"
                " give it, such as --topology=v5p:4x4x4"
            )
        if not files.is_remote(args.workdir):
            raise ConfigError(
                f"--workdir={args.workdir} is not seen from there: use gs://BUCKET/NAME"
            )
    package.check(args, shares_files=engine.shares_files)
    if (args.image or args.package) and not study.config.startswith("configs/"):
        raise ConfigError(
            f"the config {study.config} is not sent along: move it to configs/"
        )
    _check_data(engine, runs, args)


def _check_data(engine: Engine, runs: list[Run], args: Namespace) -> None:
    """Refuses data that is absent, or out of reach of the engine's hosts."""
    # One run for each path is enough: its config also tells how to prepare the data.
    runs_by_path = {run.experiment.data.path: run for run in runs}
    if args.data_path:
        if len(runs_by_path) > 1:
            raise ConfigError(
                "--data_path would put one directory in place of"
                f" {', '.join(sorted(runs_by_path))}:"
                " leave it out, and correct the study"
            )
        runs_by_path = {args.data_path: runs[-1]}
    for path in runs_by_path:
        if not engine.shares_files and not files.is_remote(path):
            raise ConfigError(
                f"the data {path} is not seen from there:"
                " copy it to a bucket and give --data_path=gs://BUCKET/NAME"
            )
    buckets.check_named(args.workdir, *runs_by_path)
    for path, run in runs_by_path.items():
        if not (files.absolute(path) / MANIFEST).exists():
            raise ConfigError(
                f"there is no data in {path}:"
                f" make it with `{prepare_command(run.experiment)}` and bring it there"
            )


def _check_and_begin(engine: Engine, args: Namespace) -> _StudyOnDisk:
    """The study, which may be new in its directory."""
    study = load(args.sweep)
    runs = expand(study)
    _check(engine, study, runs, args)
    # Rendering refuses what can't be sent: so once before anything is written, with a
    # package that does not exist yet.
    run_dirs = locate(StudyDir(_study_path(args)), study, runs)
    rehearsed = _StudyOnDisk(study, runs, run_dirs)
    engine.render(rehearsed.jobs(args), package.rehearse(args), args)
    files.make_folder(_study_path(args))
    return _begin(study, runs, args)


@contextlib.contextmanager
def _rendered(
    engine: Engine, jobs: list[Job], args: Namespace
) -> Iterator[dict[str, Path]]:
    """What the engine sends, written to the study directory; yields local paths."""
    folder = _study_path(args) / engine.name
    files.make_folder(folder)
    code_package = package.pack_code(args)
    contents = engine.render(jobs, code_package, args)
    # In a bucket the files are uploaded, and submitted from a local copy.
    with contextlib.closing(files.Mirror(folder)) as mirror:
        for name, content in contents.items():
            files.write(mirror.path / name, content)
        mirror.upload()
        yield {name: Path(mirror.path / name) for name in contents}


def _plan(engine: Engine, args: Namespace) -> None:
    """Needs no study directory, and writes nothing there but the plans."""
    # Here, as it brings jax along, which takes seconds.
    from sparsecod_jax.launching import plans

    runs = expand(load(args.sweep))
    by_run = plans.find(runs, args)
    print(plans.table(runs, by_run))


def _render(engine: Engine, args: Namespace) -> None:
    on_disk = _check_and_begin(engine, args)
    with _rendered(engine, on_disk.jobs(args), args):
        print(f"rendered: {_study_path(args) / engine.name}")


def _submit(engine: Engine, args: Namespace) -> None:
    on_disk = _check_and_begin(engine, args)
    # The lock keeps a second submission from sending the same runs.
    with locked(_study_path(args)):
        jobs = on_disk.jobs(args)
        left_out = on_disk.not_to_be_sent(engine.query(jobs, args))
        for name, reason in left_out.items():
            print(f"{name}  not sent: {reason}")
        jobs_to_send = [job for job in jobs if job.name not in left_out]
        if not jobs_to_send:
            return
        _check_fit([run for run in on_disk.runs if run.name not in left_out], args)
        with _rendered(engine, jobs, args) as paths:
            engine.submit(paths, jobs_to_send, args)
        for job in jobs_to_send:
            print(f"{job.name}  sent")


def _check_fit(runs: list[Run], args: Namespace) -> None:
    """Refuses runs that the compiler finds too large for their devices."""
    if args.topology:
        from sparsecod_jax.launching import plans

        plans.check(runs, plans.find(runs, args))


def _status(engine: Engine, args: Namespace) -> None:
    on_disk = _open(args)
    states = engine.query(on_disk.jobs(args), args)
    table = results.status_table(
        on_disk.study,
        on_disk.runs,
        on_disk.run_dirs,
        states,
    )
    print(table)


def _collect(engine: Engine, args: Namespace) -> None:
    on_disk = _open(args)
    summary = results.collect(
        _study_path(args),
        on_disk.study,
        on_disk.runs,
        on_disk.run_dirs,
    )
    print(summary)


def _cancel(engine: Engine, args: Namespace) -> None:
    engine.cancel(_open(args).jobs(args), args)


_SUBCOMMANDS = {
    "plan": _plan,
    "render": _render,
    "submit": _submit,
    "status": _status,
    "collect": _collect,
    "cancel": _cancel,
}
