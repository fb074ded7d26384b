"""How is a study sent to another engine? What Slurm, JobSet and TPU VMs share; each file of launch/ adds the rest.

What is to be sent is read from the run directories. What the scheduler says is a hint, which only keeps a run from being sent while the
scheduler still holds it.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from sparsecod_jax.data.store import MANIFEST, prepare_command
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.launching import package
from sparsecod_jax.launching.package import CodePackage
from sparsecod_jax.shell import options
from sparsecod_jax.shell.ending import exit_code_of
from sparsecod_jax.storage import buckets, files
from sparsecod_jax.storage.ownership import locked
from sparsecod_jax.storage.rundir import RunDir
from sparsecod_jax.study import results
from sparsecod_jax.study.study import Run, Study, expand, load
from sparsecod_jax.study.study_dir import StudyDir, begin, locate, remaining, verbs

LIVE = (
    "pending",
    "running",
)  # what `Engine.query` says of a run that the scheduler will go on with


@dataclasses.dataclass(frozen=True)
class Job:
    """A run as an engine sees it."""

    name: str  # of the run, unique in its study only: [a-z]([-a-z0-9]*[a-z0-9])?, at most 40
    index: int  # of the run in its study, the same at every submission
    workdir: str  # run directory, an absolute path or gs:// URL
    commands: tuple[
        tuple[str, ...], ...
    ]  # argv lists: train, by every process, and then maybe analyze, by one alone
    topology: str  # as `sparsecod plan` takes it: v5p:4x4x4, h100:2x8; empty where none was given


class Engine(Protocol):
    """What a file of launch/ adds."""

    name: str  # of the engine, and of the folder of the study directory that keeps what was rendered: slurm, jobset, tpu_vm
    shares_files: bool  # whether its hosts see the files of this one: then this checkout may be the code, and paths may be local

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the engine's own options, to every verb."""
        ...

    def render(
        self, jobs: list[Job], code_package: CodePackage, args: argparse.Namespace
    ) -> dict[str, bytes]:
        """What submit sends, by file name: the same bytes for the same arguments; raises ConfigError for what can't be sent."""
        ...

    def submit(
        self, files: dict[str, Path], jobs: list[Job], args: argparse.Namespace
    ) -> None:
        """Sends `jobs`, whose rendered files lie here; harmless when repeated."""
        ...

    def query(self, jobs: list[Job], args: argparse.Namespace) -> dict[str, str]:
        """The scheduler's state by run name: one of LIVE, or any other word; runs that it does not know are left out."""
        ...

    def cancel(self, jobs: list[Job], args: argparse.Namespace) -> None:
        """Ends those of `jobs` that the scheduler holds."""
        ...


def study_id(args: argparse.Namespace) -> str:
    """Eight hexadecimal digits, a different eight for each study directory: what makes names of jobs unique in a cluster."""
    return hashlib.sha256(os.fspath(files.absolute(args.workdir)).encode()).hexdigest()[
        :8
    ]


def main(engine: Engine, argv: list[str]) -> int:
    """The command line of launch/ENGINE.py; returns the exit code of `errors`."""
    args = _parser(engine).parse_args(argv)

    def run() -> None:
        options.check(args, argv)
        args.workdir = os.fspath(files.absolute(args.workdir))
        _VERBS[args.verb](engine, args)

    return exit_code_of(f"{engine.name} {args.verb}", run)


def _parser(engine: Engine) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"launch/{engine.name}.py",
        description="Sends a study elsewhere.",
        allow_abbrev=False,
    )
    parser.add_argument("verb", choices=_VERBS, metavar="VERB", help=", ".join(_VERBS))
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
        "--data",
        help="data directory in place of the runs' own data.path, such as gs://BUCKET/NAME",
    )
    package.add_arguments(parser)
    engine.add_arguments(parser)
    return parser


@dataclasses.dataclass(frozen=True)
class _Sent:
    """A study in its directory."""

    study: Study
    runs: list[Run]
    places: dict[str, RunDir]

    def jobs(self, args: argparse.Namespace) -> list[Job]:
        return [self._job(index, run, args) for index, run in enumerate(self.runs)]

    def _job(self, index: int, run: Run, args: argparse.Namespace) -> Job:
        place = self.places[run.name]
        train, *others = verbs(self.study, run, place)
        train = [*train, *([f"--config.data.path={args.data}"] if args.data else [])]
        commands = tuple(
            ("python", "-P", "-m", "sparsecod_jax", *verb) for verb in (train, *others)
        )
        return Job(run.name, index, os.fspath(place.path), commands, args.topology)

    def not_to_be_sent(self, held: dict[str, str]) -> dict[str, str]:
        """Names of runs, and why; `held` is what the scheduler says."""
        found = {}
        for run in self.runs:
            place = self.places[run.name]
            if not remaining(self.study, run, place):
                found[run.name] = "finished"
            elif results.describe(self.study, run, place)["status"] == "diverged":
                found[run.name] = "diverged, as it would again"
            elif held.get(run.name) in LIVE:
                found[run.name] = held[run.name]
        return found


def _open(args: argparse.Namespace) -> _Sent:
    """The study as it was sent before."""
    buckets.check_named(args.workdir)
    directory = StudyDir(files.absolute(args.workdir))
    if not directory.described.exists():
        raise ConfigError(
            f"{directory.path} holds no study: submit it first, or correct --workdir"
        )
    study = load(args.sweep)
    return _begin(study, expand(study), args)


def _begin(study: Study, runs: list[Run], args: argparse.Namespace) -> _Sent:
    return _Sent(
        study,
        runs,
        begin(StudyDir(files.absolute(args.workdir)), args.sweep, study, runs),
    )


def _check(
    engine: Engine, study: Study, runs: list[Run], args: argparse.Namespace
) -> None:
    """Refuses what can't work from there, before anything is written."""
    if not engine.shares_files and not args.topology:
        raise ConfigError(
            "--topology says which devices a run gets: give it, such as --topology=v5p:4x4x4"
        )
    if not engine.shares_files and not files.is_remote(args.workdir):
        raise ConfigError(
            f"--workdir={args.workdir} is not seen from there: use gs://BUCKET/NAME"
        )
    package.check(args, shares_files=engine.shares_files)
    if (args.image or args.package) and not study.config.startswith("configs/"):
        raise ConfigError(
            f"the config {study.config} is not sent along: move it to configs/"
        )
    paths = {run.experiment.data.path: run for run in runs}
    if args.data and len(paths) > 1:
        raise ConfigError(
            f"--data would put one directory in place of {', '.join(sorted(paths))}: leave it out, and correct the study"
        )
    places = {args.data or path: run for path, run in paths.items()}
    for path in places:
        if not engine.shares_files and not files.is_remote(path):
            raise ConfigError(
                f"the data {path} is not seen from there: copy it to a bucket and give --data=gs://BUCKET/NAME"
            )
    buckets.check_named(args.workdir, *places)
    for path, run in places.items():
        if not (files.absolute(path) / MANIFEST).exists():
            raise ConfigError(
                f"there is no data in {path}: make it with `{prepare_command(run.experiment)}` and bring it there"
            )


def _plan(engine: Engine, args: argparse.Namespace) -> None:
    from sparsecod_jax.launching import plans  # brings jax along, which takes seconds

    runs = expand(load(args.sweep))
    print(plans.table(runs, plans.find(runs, args)))


def _checked(engine: Engine, args: argparse.Namespace) -> _Sent:
    """The study, which may be new in its directory."""
    study = load(args.sweep)
    runs = expand(study)
    _check(engine, study, runs, args)
    rehearsed = _Sent(
        study, runs, locate(StudyDir(files.absolute(args.workdir)), study, runs)
    )
    engine.render(
        rehearsed.jobs(args), package.rehearse(args), args
    )  # refuses what can't be sent
    files.make_folder(files.absolute(args.workdir))
    return _begin(study, runs, args)


def _render(engine: Engine, args: argparse.Namespace) -> None:
    sent = _checked(engine, args)
    with _rendered(engine, sent.jobs(args), args):
        print(f"rendered: {files.absolute(args.workdir) / engine.name}")


@contextlib.contextmanager
def _rendered(
    engine: Engine, jobs: list[Job], args: argparse.Namespace
) -> Iterator[dict[str, Path]]:
    """What the engine sends, written to the study directory; yields the paths here."""
    folder = files.absolute(args.workdir) / engine.name
    files.make_folder(folder)
    contents = engine.render(jobs, package.ship(args), args)
    with contextlib.closing(files.Mirror(folder)) as mirror:
        for name, content in contents.items():
            files.write(mirror.path / name, content)
        mirror.upload()
        yield {name: Path(mirror.path / name) for name in contents}


def _submit(engine: Engine, args: argparse.Namespace) -> None:
    sent = _checked(engine, args)
    with locked(files.absolute(args.workdir)):
        jobs = sent.jobs(args)
        left_out = sent.not_to_be_sent(engine.query(jobs, args))
        for name, why in left_out.items():
            print(f"{name}  not sent: {why}")
        todo = [job for job in jobs if job.name not in left_out]
        if not todo:
            return
        _check_fit([run for run in sent.runs if run.name not in left_out], args)
        with _rendered(engine, jobs, args) as paths:
            engine.submit(paths, todo, args)
        for job in todo:
            print(f"{job.name}  sent")


def _check_fit(runs: list[Run], args: argparse.Namespace) -> None:
    if args.topology:
        from sparsecod_jax.launching import plans

        plans.check(runs, plans.find(runs, args))


def _status(engine: Engine, args: argparse.Namespace) -> None:
    sent = _open(args)
    held = engine.query(sent.jobs(args), args)
    print(results.status_table(sent.study, sent.runs, sent.places, held))


def _collect(engine: Engine, args: argparse.Namespace) -> None:
    sent = _open(args)
    print(
        results.collect(
            files.absolute(args.workdir), sent.study, sent.runs, sent.places
        )
    )


def _cancel(engine: Engine, args: argparse.Namespace) -> None:
    engine.cancel(_open(args).jobs(args), args)


_VERBS = {
    "plan": _plan,
    "render": _render,
    "submit": _submit,
    "status": _status,
    "collect": _collect,
    "cancel": _cancel,
}
