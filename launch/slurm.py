"""How does a study run under Slurm? Job array: one task per run.

    python launch/slurm.py submit --sweep=configs/sweeps/depth.py:mini \
        --workdir=/shared/depth --topology=h100:1x8 --sbatch=--time=1-0

The script of the job is always the same. The commands of the runs are in a file, as lists of
words, which no shell ever reads.
"""

import dataclasses
import getpass
import hashlib
import json
import os
import re
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from sparsecod_jax.errors import ConfigError
from sparsecod_jax.launching import launching, package
from sparsecod_jax.launching.commands import output_of
from sparsecod_jax.launching.launching import Job, study_id
from sparsecod_jax.launching.package import CodePackage
from sparsecod_jax.plan import topologies
from sparsecod_jax.storage.files import is_remote

HERE = Path(__file__).resolve().parent
IS_INSTALLED = (
    HERE.parent / "cli.py"
).exists()  # within the package, as a wheel has it

GRACE = 120  # seconds to save in before a time limit


class Slurm:
    """See `launching.Engine`."""

    name = "slurm"
    shares_files = True

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--nodes",
            type=int,
            help="of each run (default: those of the topology, else 1)",
        )
        parser.add_argument(
            "--processes",
            type=int,
            help="of each node (default: one per GPU of the topology, else 1)",
        )
        parser.add_argument(
            "--at_once",
            type=int,
            help="runs at a time (default: as many as Slurm starts)",
        )
        parser.add_argument(
            "--sbatch",
            action="append",
            default=[],
            metavar="OPTION",
            help="any of sbatch: --sbatch=--partition=gpu; may be repeated",
        )

    def render(
        self, jobs: list[Job], code_package: CodePackage, args: Namespace
    ) -> dict[str, bytes]:
        """The commands of all runs, and the command that submits them."""
        _check(args)
        code, launch, module = _code(code_package)
        content = _describe(jobs, code_package, args)
        # Named by its content: tasks that wait keep theirs when another is sent.
        digest = hashlib.sha256(content).hexdigest()[:12]
        runs_name = f"runs-{digest}.json"
        script = [
            os.fspath(launch / "slurm_job.sh"),
            *(sys.executable, "-m", module),
            os.fspath(Path(args.workdir) / self.name / runs_name),
        ]
        sbatch = json.dumps([_sbatch(code, args), script], indent=1)
        return {runs_name: content, "sbatch.json": sbatch.encode()}

    def submit(self, files: dict[str, Path], jobs: list[Job], args: Namespace) -> None:
        """Submits one array, whose indices are those of the runs in their study."""
        logs = Path(args.workdir) / "logs"
        logs.mkdir(exist_ok=True)
        command, script = json.loads(files["sbatch.json"].read_text())
        array = ",".join(str(job.index) for job in jobs)
        # Slurm itself holds back the tasks beyond so many at a time.
        if args.at_once:
            array += f"%{args.at_once}"
        output_of([*command, f"--array={array}", *script])

    def query(self, jobs: list[Job], args: Namespace) -> dict[str, str]:
        """States by the index of a task, which is that of its run."""
        names = {str(job.index): job.name for job in jobs}
        # Index and state, one line for each task.
        squeue = ["squeue", "--noheader", "--array", "--format=%K %T"]
        listing = output_of([*squeue, *_own(args)])
        states = {}
        for line in listing.splitlines():
            index, state = line.split()
            # A task that is completing may still hold its run: it counts as running.
            states[names[index]] = "pending" if state == "PENDING" else "running"
        return states

    def cancel(self, jobs: list[Job], args: Namespace) -> None:
        """Ends all tasks of this study: their common name is enough."""
        output_of(["scancel", *_own(args)])


def _code(code_package: CodePackage) -> tuple[Path, Path, str]:
    """The folder where tasks work, the launch folder, and the module that tasks run.

    All hosts see them.
    """
    if code_package.wheel:  # unpacked in the study's directory
        folder = Path(code_package.wheel).parent
        return folder, folder / "launch", "launch.slurm_task"
    if IS_INSTALLED:
        return Path.cwd(), HERE, "sparsecod_jax.launch.slurm_task"
    return package.ROOT, HERE, "launch.slurm_task"


def _describe(jobs: list[Job], code_package: CodePackage, args: Namespace) -> bytes:
    """The file from which a task reads its commands."""
    runs = [
        {
            "name": job.name,
            "workdir": job.workdir,
            "commands": [_with_this_python(command) for command in job.commands],
        }
        for job in jobs
    ]
    described = {
        "study": args.workdir,
        "code_package": dataclasses.asdict(code_package),
        "runs": runs,
    }
    return json.dumps(described, indent=1).encode()


def _sbatch(code: Path, args: Namespace) -> list[str]:
    """The command that submits, without the array and the script."""
    nodes, processes, devices = _shape(args)
    return [
        "sbatch",
        "--parsable",
        f"--job-name={_name(args)}",
        f"--chdir={code}",
        f"--output={Path(args.workdir) / 'logs' / 'slurm.log'}",
        "--open-mode=append",
        "--requeue",
        f"--signal=TERM@{GRACE}",
        f"--nodes={nodes}",
        f"--ntasks-per-node={processes}",
        *devices,
        *args.sbatch,
    ]


def _check(args: Namespace) -> None:
    """Refuses options with which Slurm can't work.

    Raises:
      ConfigError: names the option.
    """
    if is_remote(args.workdir) or re.search(r"[%\\\x00-\x1f\x7f]", args.workdir):
        raise ConfigError(
            f"Slurm can't write to {args.workdir!r}:"
            " choose a --workdir that all hosts see, without % \\ or newlines"
        )
    for name in ("nodes", "processes", "at_once"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name}={value} is below 1: raise it or leave it out")
    for option in args.sbatch:
        if not option.startswith("--"):
            raise ConfigError(
                f"--sbatch={option} is no long option:"
                " write it like --sbatch=--partition=gpu"
            )


def _shape(args: Namespace) -> tuple[int, int, list[str]]:
    """Nodes, processes of each, and options for their GPUs.

    JAX under Slurm has one process per GPU.
    """
    # Without a topology the GPUs, if any, are among the options for sbatch.
    if not args.topology:
        return args.nodes or 1, args.processes or 1, []
    shape = topologies.shape(args.topology)
    if shape.is_tpu:
        raise ConfigError(
            f"--topology={args.topology} is no matter for Slurm:"
            " give GPUs, such as h100:2x8"
        )
    nodes = args.nodes or shape.slices
    processes = args.processes or shape.chips
    return nodes, processes, [f"--gpus-per-node={shape.chips}"]


def _with_this_python(command: tuple[str, ...]) -> list[str]:
    """The command, run by the Python that submits."""
    return [sys.executable, *command[1:]]


def _name(args: Namespace) -> str:
    """The name of all jobs of a study, by which they are found again."""
    return f"sparsecod-{study_id(args)}"


def _own(args: Namespace) -> list[str]:
    """Options that select the jobs of this study."""
    return [f"--user={getpass.getuser()}", f"--name={_name(args)}"]


if __name__ == "__main__":
    sys.exit(launching.main(Slurm(), sys.argv[1:]))
