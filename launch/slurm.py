"""How does a study run under Slurm? As one job array, whose tasks are its runs.

    python launch/slurm.py submit --sweep=configs/sweeps/depth.py:mini --workdir=/shared/depth --topology=h100:1x8 --sbatch=--time=1-0

The script of the job is always the same: what runs are told lies in a file as lists of words, which no shell ever reads.
"""

import argparse
import dataclasses
import getpass
import hashlib
import json
import os
import re
import sys
from pathlib import Path

from sparsecod_jax.errors import ConfigError
from sparsecod_jax.launching import launching, package
from sparsecod_jax.launching.commands import output_of
from sparsecod_jax.launching.launching import Job, study_id
from sparsecod_jax.launching.package import CodePackage
from sparsecod_jax.plan import topologies
from sparsecod_jax.storage.files import is_remote

SAVING = 120  # seconds before a time limit at which runs are told to save


class Slurm:
    """See `launching.Engine`."""

    name = "slurm"
    shares_files = True

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--nodes",
            type=int,
            help="of each run (default: as the topology says, else 1)",
        )
        parser.add_argument(
            "--processes",
            type=int,
            help="of each node (default: one a GPU of the topology, else 1)",
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
        self, jobs: list[Job], code_package: CodePackage, args: argparse.Namespace
    ) -> dict[str, bytes]:
        _check(args)
        study = Path(args.workdir)
        code = Path(code_package.wheel).parent if code_package.wheel else package.ROOT
        runs = [
            {
                "name": job.name,
                "workdir": job.workdir,
                "commands": [_here(command) for command in job.commands],
            }
            for job in jobs
        ]
        told = json.dumps(
            {
                "study": args.workdir,
                "code_package": dataclasses.asdict(code_package),
                "runs": runs,
            },
            indent=1,
        ).encode()
        file = f"runs-{hashlib.sha256(told).hexdigest()[:12]}.json"  # tasks that wait keep theirs when another is sent
        nodes, processes, devices = _shape(args)
        command = [
            "sbatch",
            "--parsable",
            f"--job-name={_name(args)}",
            f"--chdir={code}",
            f"--output={study / 'logs' / 'slurm.log'}",
            "--open-mode=append",
            "--requeue",
            f"--signal=TERM@{SAVING}",
            f"--nodes={nodes}",
            f"--ntasks-per-node={processes}",
            *devices,
            *args.sbatch,
        ]
        script = [
            code / "launch" / "slurm_job.sh",
            sys.executable,
            "-m",
            "launch.slurm_task",
            study / self.name / file,
        ]
        return {
            file: told,
            "sbatch.json": json.dumps(
                [command, list(map(os.fspath, script))], indent=1
            ).encode(),
        }

    def submit(
        self, files: dict[str, Path], jobs: list[Job], args: argparse.Namespace
    ) -> None:
        (Path(args.workdir) / "logs").mkdir(exist_ok=True)
        command, script = json.loads(files["sbatch.json"].read_text())
        throttle = f"%{args.at_once}" if args.at_once else ""
        output_of(
            [
                *command,
                f"--array={','.join(str(job.index) for job in jobs)}{throttle}",
                *script,
            ]
        )

    def query(self, jobs: list[Job], args: argparse.Namespace) -> dict[str, str]:
        names = {str(job.index): job.name for job in jobs}
        held = output_of(
            ["squeue", "--noheader", "--array", *_own(args), "--format=%K %T"]
        )
        states = dict(line.split() for line in held.splitlines())
        # A task that is completing may still hold its run: it counts as running.
        return {
            names[index]: "pending" if state == "PENDING" else "running"
            for index, state in states.items()
        }

    def cancel(self, jobs: list[Job], args: argparse.Namespace) -> None:
        output_of(["scancel", *_own(args)])


def _check(args: argparse.Namespace) -> None:
    if is_remote(args.workdir) or re.search(r"[%\\\x00-\x1f\x7f]", args.workdir):
        raise ConfigError(
            f"Slurm can't write to {args.workdir!r}: choose a --workdir that all hosts see, without % \\ or newlines"
        )
    for name in ("nodes", "processes", "at_once"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise ConfigError(f"--{name}={value} is below 1: raise it or leave it out")
    if args.package is None and not (package.ROOT / "launch" / "slurm_job.sh").exists():
        raise ConfigError(
            f"{package.ROOT} has no launch folder: send studies from a checkout"
        )
    if wrong := [option for option in args.sbatch if not option.startswith("--")]:
        raise ConfigError(
            f"--sbatch={wrong[0]} is no long option: write it like --sbatch=--partition=gpu"
        )


def _shape(args: argparse.Namespace) -> tuple[int, int, list[str]]:
    """Nodes, processes of each and options for their GPUs: JAX under Slurm has one process a GPU."""
    if not args.topology:
        return args.nodes or 1, args.processes or 1, []
    asked = topologies.shape(args.topology)
    if asked.is_tpu:
        raise ConfigError(
            f"--topology={args.topology} is no matter for Slurm: give GPUs, such as h100:2x8"
        )
    return (
        args.nodes or asked.slices,
        args.processes or asked.chips,
        [f"--gpus-per-node={asked.chips}"],
    )


def _here(command: tuple[str, ...]) -> list[str]:
    return [sys.executable, *command[1:]]


def _name(args: argparse.Namespace) -> str:
    return f"sparsecod-{study_id(args)}"


def _own(args: argparse.Namespace) -> list[str]:
    return [f"--user={getpass.getuser()}", f"--name={_name(args)}"]


if __name__ == "__main__":
    sys.exit(launching.main(Slurm(), sys.argv[1:]))
