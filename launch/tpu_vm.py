"""How is a study sent to TPU VMs, without a cluster? One queued resource a run, whose hosts start it by themselves.

    python launch/tpu_vm.py submit --sweep=configs/sweeps/depth.py:paper --workdir=gs://BUCKET/depth --topology=v5p:4x4x4 --image=IMAGE \
        --project=PROJECT --zone=us-east5-a --spot

A queued resource that was preempted is deleted and asked for again by the next `submit`: run it from time to time.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from sparsecod_jax.errors import ConfigError, SparsecodError
from sparsecod_jax.launching import host, launching
from sparsecod_jax.launching.commands import output_of
from sparsecod_jax.launching.container import PYTHON_IMAGE, Wheel
from sparsecod_jax.launching.launching import Job
from sparsecod_jax.launching.package import CodePackage
from sparsecod_jax.plan import topologies
from sparsecod_jax.plan.topologies import Shape

HOST_SCRIPT = Path(__file__).with_name("tpu_vm_host.sh")
STUDY = "sparsecod-study"  # label
ATTRIBUTE = "sparsecod-commands"  # of the metadata, which the script reads

# Google Cloud's words.
STATES = {"ACTIVE": "running"} | dict.fromkeys(
    ("ACCEPTED", "CREATING", "PROVISIONING", "WAITING_FOR_RESOURCES"), "pending"
)
GOING = ("DELETING", "SUSPENDING")
OWN_REGISTRIES = ("-docker.pkg.dev", "gcr.io")  # which a VM must log in to

GRACE = 120  # seconds to save in when the VM shuts down; spot VMs have 30


class TpuVm:
    """Sends runs with gcloud."""

    name = "tpu_vm"
    shares_files = False

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--project", required=True, help="of Google Cloud")
        parser.add_argument("--zone", required=True, help="where there are such TPUs")
        parser.add_argument(
            "--service_account",
            help="e-mail of the account that may read and write the buckets (default Compute Engine's)",
        )
        kind = parser.add_mutually_exclusive_group()
        kind.add_argument(
            "--spot",
            action="store_true",
            help="capacity that may be taken away, for less",
        )
        kind.add_argument(
            "--reserved",
            action="store_true",
            help="capacity that the project has reserved",
        )
        kind.add_argument(
            "--flex",
            metavar="DURATION",
            help="capacity for a limited time, such as 2d, 7d at most",
        )
        parser.add_argument(
            "--max_restarts",
            type=int,
            default=3,
            help="on a host after failures (default %(default)s)",
        )

    def render(
        self, jobs: list[Job], code_package: CodePackage, args: argparse.Namespace
    ) -> dict[str, bytes]:
        if args.max_restarts < 0:
            raise ConfigError(
                f"--max_restarts={args.max_restarts} is below 0: raise it"
            )
        commands = {
            f"{job.name}.json": json.dumps(
                _on_host(job, code_package, args), indent=1
            ).encode()
            for job in jobs
        }
        return {HOST_SCRIPT.name: HOST_SCRIPT.read_bytes(), **commands}

    def submit(
        self, files: dict[str, Path], jobs: list[Job], args: argparse.Namespace
    ) -> None:
        states = _states(args)
        for job in jobs:
            state = states.get(_name(job, args))
            if state in GOING:
                raise SparsecodError(
                    f"{_name(job, args)} is {state.lower()}: submit again in some minutes"
                )
            if state in STATES:
                continue
            if state:
                output_of(_delete(job, args))
            output_of(
                _create(job, files[HOST_SCRIPT.name], files[f"{job.name}.json"], args)
            )

    def query(self, jobs: list[Job], args: argparse.Namespace) -> dict[str, str]:
        states = _states(args)
        found = {
            job.name: states[_name(job, args)]
            for job in jobs
            if _name(job, args) in states
        }
        return {name: STATES.get(state, state.lower()) for name, state in found.items()}

    def cancel(self, jobs: list[Job], args: argparse.Namespace) -> None:
        states = _states(args)
        for job in jobs:
            if _name(job, args) in states:
                output_of(_delete(job, args))


def _name(job: Job, args: argparse.Namespace) -> str:
    return f"{job.name}-{launching.study_id(args)}"


def _gcloud(verb: str, args: argparse.Namespace, *words: str) -> list[str]:
    release = (
        ["alpha"] if verb == "create" and args.flex else []
    )  # where flexible capacity is known
    where = [f"--project={args.project}", f"--zone={args.zone}", "--quiet"]
    return [
        "gcloud",
        *release,
        "compute",
        "tpus",
        "queued-resources",
        verb,
        *words,
        *where,
    ]


def _states(args: argparse.Namespace) -> dict[str, str]:
    found = json.loads(output_of(_gcloud("list", args, "--format=json")))
    return {each["name"].rpartition("/")[2]: each["state"]["state"] for each in found}


def _delete(job: Job, args: argparse.Namespace) -> list[str]:
    return _gcloud("delete", args, _name(job, args), "--force")  # with its VMs


def _create(
    job: Job, script: Path, commands: Path, args: argparse.Namespace
) -> list[str]:
    shape, name = topologies.shape(job.topology), _name(job, args)
    if "," in f"{script}{commands}":
        raise ConfigError(
            f"gcloud takes no comma in a path such as {commands}: set TMPDIR to one without"
        )
    nodes = (
        [f"--node-id={name}"]
        if shape.slices == 1
        else [f"--node-count={shape.slices}", f"--node-prefix={name}"]
    )
    flex = (
        ["--provisioning-model=FLEX_START", f"--max-run-duration={args.flex}"]
        if args.flex
        else []
    )
    return _gcloud(
        "create",
        args,
        name,
        *nodes,
        f"--accelerator-type={accelerator_type(job.topology)}",
        f"--runtime-version={shape.chip.tpu.vm_runtime}",
        f"--metadata-from-file=startup-script={script},{ATTRIBUTE}={commands}",
        f"--labels={STUDY}={launching.study_id(args)}",
        "--scopes=https://www.googleapis.com/auth/cloud-platform",
        *(
            [f"--service-account={args.service_account}"]
            if args.service_account
            else []
        ),
        *(["--spot"] if args.spot else []),
        *(["--reserved"] if args.reserved else []),
        *flex,
    )


def accelerator_type(topology: str) -> str:
    """Google Cloud's word for a slice, which counts its cores or chips and leaves its sides to them.

    Raises:
      ConfigError: a slice of that many chips would have other sides, or these are not TPUs.
    """
    shape = topologies.shape(topology)
    tpu = shape.chip.tpu
    if not tpu:
        raise ConfigError(
            f"--topology={topology} is none of TPUs: send it with launch/slurm.py or launch/jobset.py"
        )
    sides = list(shape.sides)
    powers = all(side & (side - 1) == 0 for side in sides)
    if (
        not powers
        or (sides != sorted(sides) and sides != [2, 2, 1])
        or sides[-1] > 2 * sides[0]
    ):
        raise ConfigError(
            f"--topology={topology} has no name among TPU VMs: take sides that differ least, as in 4x4x8, or launch/jobset.py"
        )
    return f"{tpu.vm_type}-{tpu.vm_cores * shape.chips}"


def _on_host(
    job: Job, code_package: CodePackage, args: argparse.Namespace
) -> dict[str, Any]:
    """What the script does on each host: commands, of which the last is the run, again after failures and preemptions."""
    accelerator_type(job.topology)
    image = code_package.image or PYTHON_IMAGE
    if not re.fullmatch(r"[\w][-\w.:/@]*", image, re.ASCII):
        raise ConfigError(
            f"--image={image} names no image: write it like REGION-docker.pkg.dev/PROJECT/REPOSITORY/NAME@sha256:..."
        )
    shape = topologies.shape(job.topology)
    argv = host.argv(job.commands, several_tpu_hosts=_several_hosts(shape))
    # A TPU's driver needs device files, the host's network and locked memory; the VM is this run's alone.
    docker = [
        "docker",
        "run",
        "--rm",
        "--privileged",
        "--network=host",
        "--user=0",
        "--entrypoint=",
        f"--stop-timeout={GRACE}",
    ]
    docker += [f"--env={name}" for name in host.HOST_NUMBERS]
    if not code_package.wheel:
        registry = image.partition("/")[0]
        login = (
            [["gcloud", "auth", "configure-docker", registry, "--quiet"]]
            if registry.endswith(OWN_REGISTRIES)
            else []
        )
        return {
            "max_restarts": args.max_restarts,
            "commands": [
                *login,
                ["docker", "pull", "--quiet", image],
                [*docker, image, *argv],
            ],
        }
    wheel = Wheel(code_package, "tpu")
    docker.append(f"--volume={wheel.folder}:{wheel.folder}")
    variables = [f"--env={name}={value}" for name, value in wheel.environment.items()]
    prepare = [
        ["mkdir", "--parents", wheel.folder],
        wheel.fetch,
        [*docker, image, *wheel.install],
    ]
    return {
        "max_restarts": args.max_restarts,
        "commands": [
            *prepare,
            [*docker, *variables, f"--workdir={wheel.workdir}", image, *argv],
        ],
    }


def _several_hosts(shape: Shape) -> bool:
    return shape.hosts > 1 and shape.sides != (2, 4)  # a VM of eight chips is one host


if __name__ == "__main__":
    sys.exit(launching.main(TpuVm(), sys.argv[1:]))
