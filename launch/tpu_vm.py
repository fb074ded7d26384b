"""How is a study sent to TPU VMs, without a cluster? Queued resources: one per run.

    python launch/tpu_vm.py submit --sweep=configs/sweeps/depth.py:paper \
        --workdir=gs://BUCKET/depth --topology=v5p:4x4x4 --image=IMAGE \
        --project=PROJECT --zone=us-east5-a --spot

The hosts of a queued resource start its run by themselves. One that was preempted is deleted
and requested again by the next `submit`: run it from time to time.
"""

import json
import re
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from sparsecod_jax.errors import ConfigError, SparsecodError
from sparsecod_jax.launching import host, launching
from sparsecod_jax.launching.commands import output_of
from sparsecod_jax.launching.container import PYTHON_IMAGE, Wheel
from sparsecod_jax.launching.launching import Job
from sparsecod_jax.launching.package import CodePackage
from sparsecod_jax.parallel.devices import Tpu
from sparsecod_jax.plan import topologies
from sparsecod_jax.plan.topologies import Shape

HOST_SCRIPT = Path(__file__).with_name("tpu_vm_host.sh")
STUDY = "sparsecod-study"  # label
ATTRIBUTE = "sparsecod-commands"  # of the metadata, which the script reads

# Google Cloud's states, with what they mean here.
STATES = {
    "ACTIVE": "running",
    "ACCEPTED": "pending",
    "CREATING": "pending",
    "PROVISIONING": "pending",
    "WAITING_FOR_RESOURCES": "pending",
}
ENDING = ("DELETING", "SUSPENDING")
OWN_REGISTRIES = ("-docker.pkg.dev", "gcr.io")  # which a VM must log in to

GRACE = 120  # seconds to save in when the VM shuts down; spot VMs have 30


class TpuVm:
    """Sends runs with gcloud."""

    name = "tpu_vm"
    shares_files = False

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--project", required=True, help="of Google Cloud")
        parser.add_argument("--zone", required=True, help="where there are such TPUs")
        parser.add_argument(
            "--service_account",
            help="e-mail of the account that may read and write the buckets"
            " (default Compute Engine's)",
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
        self, jobs: list[Job], code_package: CodePackage, args: Namespace
    ) -> dict[str, bytes]:
        """The script that hosts run when they boot, and for each run its commands."""
        if args.max_restarts < 0:
            raise ConfigError(
                f"--max_restarts={args.max_restarts} is below 0: raise it"
            )
        rendered = {HOST_SCRIPT.name: HOST_SCRIPT.read_bytes()}
        for job in jobs:
            commands = _host_commands(job, code_package)
            # The script reads both from the metadata of its VM.
            on_host = {"max_restarts": args.max_restarts, "commands": commands}
            rendered[f"{job.name}.json"] = json.dumps(on_host, indent=1).encode()
        return rendered

    def submit(self, files: dict[str, Path], jobs: list[Job], args: Namespace) -> None:
        """Requests what is absent; what ended is deleted first, as its name is taken."""
        states = _states(args)
        script = files[HOST_SCRIPT.name]
        for job in jobs:
            name = _name(job, args)
            state = states.get(name)
            if state in ENDING:
                raise SparsecodError(
                    f"{name} is {state.lower()}: submit again in some minutes"
                )
            # It is there or on its way.
            if state in STATES:
                continue
            if state:
                output_of(_delete(job, args))
            output_of(_create(job, script, files[f"{job.name}.json"], args))

    def query(self, jobs: list[Job], args: Namespace) -> dict[str, str]:
        """Google Cloud's states in our words where there is one."""
        states = _states(args)
        found = {}
        for job in jobs:
            state = states.get(_name(job, args))
            if state:
                found[job.name] = STATES.get(state, state.lower())
        return found

    def cancel(self, jobs: list[Job], args: Namespace) -> None:
        """Deletes the queued resources, and with them the VMs."""
        states = _states(args)
        for job in jobs:
            if _name(job, args) in states:
                output_of(_delete(job, args))


def _name(job: Job, args: Namespace) -> str:
    """The name of a run's queued resource, unique in its zone."""
    return f"{job.name}-{launching.study_id(args)}"


def _gcloud(action: str, args: Namespace, *words: str) -> list[str]:
    """A command on queued resources in the project and zone of the options."""
    command = ["gcloud"]
    # Flexible capacity is known to the alpha release alone.
    if action == "create" and args.flex:
        command.append("alpha")
    command += ["compute", "tpus", "queued-resources", action, *words]
    command += [f"--project={args.project}", f"--zone={args.zone}", "--quiet"]
    return command


def _states(args: Namespace) -> dict[str, str]:
    """Google Cloud's state of each queued resource, by name."""
    output = output_of(_gcloud("list", args, "--format=json"))
    resources = json.loads(output)
    states = {}
    for resource in resources:
        _, _, name = resource["name"].rpartition("/")
        states[name] = resource["state"]["state"]
    return states


def _delete(job: Job, args: Namespace) -> list[str]:
    # By force: with its VMs.
    return _gcloud("delete", args, _name(job, args), "--force")


def _create(job: Job, script: Path, commands: Path, args: Namespace) -> list[str]:
    """The command that requests the queued resource of a run.

    Script and commands reach the hosts as metadata of their VMs.
    """
    if "," in f"{script}{commands}":
        raise ConfigError(
            f"gcloud takes no comma in a path such as {commands}:"
            " set TMPDIR to one without"
        )
    shape = topologies.shape(job.topology)
    tpu = _tpu(job.topology)
    name = _name(job, args)
    nodes = [f"--node-id={name}"]
    if shape.slices > 1:
        nodes = [f"--node-count={shape.slices}", f"--node-prefix={name}"]
    options = []
    if args.service_account:
        options.append(f"--service-account={args.service_account}")
    if args.spot:
        options.append("--spot")
    if args.reserved:
        options.append("--reserved")
    if args.flex:
        options.append("--provisioning-model=FLEX_START")
        options.append(f"--max-run-duration={args.flex}")
    return _gcloud(
        "create",
        args,
        name,
        *nodes,
        f"--accelerator-type={accelerator_type(job.topology)}",
        f"--runtime-version={tpu.vm_runtime}",
        f"--metadata-from-file=startup-script={script},{ATTRIBUTE}={commands}",
        f"--labels={STUDY}={launching.study_id(args)}",
        "--scopes=https://www.googleapis.com/auth/cloud-platform",
        *options,
    )


def accelerator_type(topology: str) -> str:
    """Google Cloud's name for a slice, such as v5p-128.

    It has a number of cores or chips, and leaves the sides of the slice to Google Cloud.

    Raises:
      ConfigError: a slice of that many chips would have other sides, or these are not
        TPUs.
    """
    tpu = _tpu(topology)
    shape = topologies.shape(topology)
    sides = list(shape.sides)
    # Of slices with that many chips Google Cloud takes the one whose sides differ least.
    are_powers_of_2 = all(side.bit_count() == 1 for side in sides)
    are_sorted = sides == sorted(sides) or sides == [2, 2, 1]
    if not are_powers_of_2 or not are_sorted or sides[-1] > 2 * sides[0]:
        raise ConfigError(
            f"--topology={topology} has no name among TPU VMs:"
            " take sides that differ least, as in 4x4x8, or launch/jobset.py"
        )
    return f"{tpu.vm_type}-{tpu.vm_cores * shape.chips}"


def _tpu(topology: str) -> Tpu:
    """The TPU of a topology, which has no other chips."""
    tpu = topologies.shape(topology).chip.tpu
    if not tpu:
        raise ConfigError(
            f"--topology={topology} is none of TPUs:"
            " send it with launch/slurm.py or launch/jobset.py"
        )
    return tpu


def _host_commands(job: Job, code_package: CodePackage) -> list[list[str]]:
    """What the script runs on each host; the last command is the run.

    Each is repeated after failures and preemptions.
    """
    # Refuses slices without a name, before anything is sent.
    accelerator_type(job.topology)
    image = code_package.image or PYTHON_IMAGE
    if not re.fullmatch(r"[\w][-\w.:/@]*", image, re.ASCII):
        raise ConfigError(
            f"--image={image} names no image:"
            " write it like REGION-docker.pkg.dev/PROJECT/REPOSITORY/NAME@sha256:..."
        )
    shape = topologies.shape(job.topology)
    argv = host.argv(job.commands, several_tpu_hosts=_has_several_hosts(shape))
    # A TPU's driver needs device files, the host's network and locked memory; the VM is
    # this run's alone.
    docker = [
        *("docker", "run", "--rm", "--privileged", "--network=host", "--user=0"),
        *("--entrypoint=", f"--stop-timeout={GRACE}"),
        *(f"--env={name}" for name in host.HOST_NUMBERS),
    ]
    if not code_package.wheel:
        pull = ["docker", "pull", "--quiet", image]
        return [*_login(image), pull, [*docker, image, *argv]]
    wheel = Wheel(code_package, "tpu")
    # Wheel and installed code stay in a folder of the VM, which containers share.
    docker.append(f"--volume={wheel.folder}:{wheel.folder}")
    variables = [f"--env={name}={value}" for name, value in wheel.environment.items()]
    return [
        ["mkdir", "--parents", wheel.folder],
        wheel.fetch,
        [*docker, image, *wheel.install],
        [*docker, *variables, f"--workdir={wheel.workdir}", image, *argv],
    ]


def _login(image: str) -> list[list[str]]:
    """The command that lets docker pull from a registry of Google Cloud.

    None for other registries, which must be public.
    """
    registry, _, _ = image.partition("/")
    if not registry.endswith(OWN_REGISTRIES):
        return []
    return [["gcloud", "auth", "configure-docker", registry, "--quiet"]]


def _has_several_hosts(shape: Shape) -> bool:
    # A VM of eight chips is one host, where a cluster would have two.
    return shape.hosts > 1 and shape.sides != (2, 4)


if __name__ == "__main__":
    sys.exit(launching.main(TpuVm(), sys.argv[1:]))
