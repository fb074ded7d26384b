"""How is a study sent to a Kubernetes cluster on Google Cloud? One JobSet a run, as JSON, with or without Kueue.

    python launch/jobset.py submit --sweep=configs/sweeps/depth.py:paper --workdir=gs://BUCKET/depth --topology=v5p:4x4x4 --image=IMAGE

docs/launch.md goes from an empty project to a first run.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from sparsecod_jax import errors
from sparsecod_jax.errors import ConfigError, Fenced, Preempted
from sparsecod_jax.launching import host, launching
from sparsecod_jax.launching.commands import output_of
from sparsecod_jax.launching.container import CLOUD_IMAGE, PYTHON_IMAGE, Wheel
from sparsecod_jax.launching.launching import Job
from sparsecod_jax.launching.package import CodePackage
from sparsecod_jax.plan import topologies
from sparsecod_jax.plan.topologies import Shape

KIND = "jobsets.jobset.x-k8s.io"
STUDY = "sparsecod-study"  # label
LONGEST_POD_NAME = 63
OVER = ("Completed", "Failed")  # conditions of a JobSet that does nothing more

USER = 1000  # the Dockerfile's
GRACE = 300  # seconds to save in; a spot node is gone sooner, whatever is asked for
COORDINATOR_PORT = 8476
FINAL = sorted((*errors.FINAL, Fenced.exit_code))
MARK = "matching FailJob rule at index {}$"  # how Kubernetes ends the message of a Job that a rule of its podFailurePolicy failed


class JobSet:
    """Sends runs with kubectl."""

    name = "jobset"
    shares_files = False

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--namespace",
            default="default",
            help="of the cluster (default %(default)s)",
        )
        parser.add_argument(
            "--context", help="of kubectl's configuration (default its current one)"
        )
        parser.add_argument(
            "--queue", help="Kueue's LocalQueue, which then decides when a run starts"
        )
        parser.add_argument(
            "--service_account",
            help="Kubernetes service account that may read and write the buckets",
        )
        parser.add_argument(
            "--node_selector",
            action="append",
            default=[],
            metavar="LABEL=VALUE",
            help="further label of the nodes",
        )
        parser.add_argument(
            "--secret",
            action="append",
            default=[],
            metavar="VARIABLE=SECRET/KEY",
            help="a Secret's key, for the run to see",
        )
        parser.add_argument(
            "--max_restarts",
            type=int,
            default=3,
            help="after failures; preemptions don't count (default %(default)s)",
        )

    def render(
        self, jobs: list[Job], code_package: CodePackage, args: argparse.Namespace
    ) -> dict[str, bytes]:
        return {
            f"{job.name}.json": json.dumps(
                manifest(job, code_package, args), indent=1
            ).encode()
            for job in jobs
        }

    def submit(
        self, files: dict[str, Path], jobs: list[Job], args: argparse.Namespace
    ) -> None:
        states = self.query(jobs, args)
        for job in jobs:
            if states.get(job.name) in launching.LIVE:
                continue
            if job.name in states:
                self.cancel([job], args)
            # Strict: a JobSet older than 0.10.1 would drop the patterns of the failure policy, and end preempted runs.
            output_of(
                [
                    *_kubectl(args),
                    "create",
                    "--validate=strict",
                    f"--filename={files[f'{job.name}.json']}",
                ]
            )

    def query(self, jobs: list[Job], args: argparse.Namespace) -> dict[str, str]:
        found = output_of(
            [
                *_kubectl(args),
                "get",
                KIND,
                f"--selector={STUDY}={launching.study_id(args)}",
                "--output=json",
            ]
        )
        states = {
            each["metadata"]["name"]: _state(each)
            for each in json.loads(found)["items"]
        }
        return {
            job.name: states[_name(job, args)]
            for job in jobs
            if _name(job, args) in states
        }

    def cancel(self, jobs: list[Job], args: argparse.Namespace) -> None:
        names = [_name(job, args) for job in jobs]
        output_of(
            [
                *_kubectl(args),
                "delete",
                KIND,
                *names,
                "--ignore-not-found",
                "--cascade=foreground",
                "--wait",
            ]
        )


def _kubectl(args: argparse.Namespace) -> list[str]:
    return [
        "kubectl",
        f"--namespace={args.namespace}",
        *([f"--context={args.context}"] if args.context else []),
    ]


def _name(job: Job, args: argparse.Namespace) -> str:
    return f"{job.name}-{launching.study_id(args)}"


def _state(jobset: dict[str, Any]) -> str:
    status = jobset.get("status", {})
    true = {
        condition["type"]
        for condition in status.get("conditions", [])
        if condition["status"] == "True"
    }
    if over := [name for name in OVER if name in true]:
        return over[0].lower()
    if "deletionTimestamp" in jobset["metadata"]:
        return "deleted"
    active = any(each.get("active") for each in status.get("replicatedJobsStatus", []))
    return "running" if active and "Suspended" not in true else "pending"


def manifest(
    job: Job, code_package: CodePackage, args: argparse.Namespace
) -> dict[str, Any]:
    """The JobSet of a run.

    Raises:
      ConfigError: a name or the topology can't be what Kubernetes takes.
    """
    shape = topologies.shape(job.topology)
    replicas, pods = (shape.slices, shape.hosts) if shape.is_tpu else (1, shape.slices)
    name = _name(job, args)
    if len(f"{name}-r-{replicas - 1}-{pods - 1}-12345") > LONGEST_POD_NAME:
        raise ConfigError(
            f"the names of pods of {job.name} would be longer than {LONGEST_POD_NAME}: shorten the name of its arm"
        )
    if shape.is_tpu and replicas > 1 and pods == 1:
        raise ConfigError(
            f"--topology={job.topology}: several slices must have several hosts each: take larger slices, or one"
        )
    if args.max_restarts < 0:
        raise ConfigError(f"--max_restarts={args.max_restarts} is below 0: raise it")
    record = {
        "commit": code_package.commit,
        "dirty": json.dumps(code_package.dirty),
        "workdir": job.workdir,
    }
    record |= {"wheel-sha256": code_package.sha256} if code_package.sha256 else {}
    exclusive = (
        {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
        if shape.is_tpu and pods > 1
        else {}
    )
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": name,
            "namespace": args.namespace,
            "labels": {STUDY: launching.study_id(args)}
            | ({"kueue.x-k8s.io/queue-name": args.queue} if args.queue else {}),
            "annotations": {f"sparsecod/{key}": value for key, value in record.items()}
            | exclusive,
        },
        "spec": {
            "failurePolicy": _failure_policy(args.max_restarts),
            "replicatedJobs": [
                {
                    "name": "r",
                    "replicas": replicas,
                    "template": {
                        "spec": _job(_pod(job, shape, code_package, args), pods)
                    },
                }
            ],
        },
    }


def _failure_policy(max_restarts: int) -> dict[str, Any]:
    """By the rule that failed the Job, see `_job`; other failures restart all pods and are counted."""
    reason = {"onJobFailureReasons": ["PodFailurePolicy"]}
    return {
        "maxRestarts": max_restarts,
        "rules": [
            {
                "name": "final",
                "action": "FailJobSet",
                **reason,
                "onJobFailureMessagePatterns": [MARK.format(0)],
            },
            {
                "name": "preempted",
                "action": "RestartJobSetAndIgnoreMaxRestarts",
                **reason,
                "onJobFailureMessagePatterns": [MARK.format(1), MARK.format(2)],
            },
        ],
    }


def _job(pod: dict[str, Any], pods: int) -> dict[str, Any]:
    """All pods or none: the first that fails ends the Job, and its exit code says how it goes on."""

    def exit_codes(values: list[int]) -> dict[str, Any]:
        return {
            "action": "FailJob",
            "onExitCodes": {"containerName": "run", "operator": "In", "values": values},
        }

    rules = [
        exit_codes(FINAL),
        exit_codes([Preempted.exit_code]),
        {
            "action": "FailJob",
            "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
        },  # gone before it could save
    ]
    return {
        "parallelism": pods,
        "completions": pods,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": rules},
        "template": {"spec": pod},
    }


def _pod(
    job: Job, shape: Shape, code_package: CodePackage, args: argparse.Namespace
) -> dict[str, Any]:
    device = "google.com/tpu" if shape.is_tpu else "nvidia.com/gpu"
    wheel = (
        Wheel(code_package, "tpu" if shape.is_tpu else "gpu")
        if code_package.wheel
        else None
    )
    security = _security(shape)
    code = {"name": "code", "mountPath": wheel.folder} if wheel else None
    shared = (
        None if shape.is_tpu else {"name": "shared", "mountPath": "/dev/shm"}
    )  # NCCL needs more than a container's 64 MB
    run = {
        "name": "run",
        "image": code_package.image or PYTHON_IMAGE,
        "command": _command(job, shape, args),
        **({"workingDir": wheel.workdir} if wheel else {}),
        "env": [
            *_place(),
            *_values(wheel.environment if wheel else {}),
            *_secrets(args.secret),
        ],
        "resources": {"limits": {device: str(shape.chips_per_host)}},
        "securityContext": security,
        "volumeMounts": [mount for mount in (code, shared) if mount],
    }
    prepare = (
        [
            {
                "name": name,
                "image": image,
                "command": _escaped(argv),
                "env": _values({"HOME": "/tmp"}),
                "securityContext": security,
                "volumeMounts": [code],
            }
            for name, image, argv in (
                ("fetch", CLOUD_IMAGE, wheel.fetch),
                ("install", PYTHON_IMAGE, wheel.install),
            )
        ]
        if wheel
        else []
    )
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE,
        "automountServiceAccountToken": False,  # buckets are reached by the node's metadata server, and nothing else is asked of Kubernetes
        **(
            {"serviceAccountName": args.service_account} if args.service_account else {}
        ),
        "nodeSelector": _node_selector(shape, args.node_selector),
        "tolerations": [{"key": device, "operator": "Exists", "effect": "NoSchedule"}],
        **({"initContainers": prepare} if prepare else {}),
        "containers": [run],
        "volumes": [
            {
                "name": mount["name"],
                "emptyDir": {"medium": "Memory"} if mount is shared else {},
            }
            for mount in (code, shared)
            if mount
        ],
    }


def _command(job: Job, shape: Shape, args: argparse.Namespace) -> list[str]:
    """The words that a container starts; those of GPUs are told who they are, TPUs find out."""
    train, *others = (_escaped(command) for command in job.commands)
    if not shape.is_tpu:
        count = shape.slices
        train.append(f"--process_count={count}")
        if count > 1:
            name = _name(job, args)
            train += [
                f"--coordinator={name}-r-0-0.{name}:{COORDINATOR_PORT}",
                f"--process_index=$({host.HOST_NUMBERS[1]})",
            ]
    return host.argv(
        [train, *others], several_tpu_hosts=shape.is_tpu and shape.hosts > 1
    )


def _escaped(argv: tuple[str, ...] | list[str]) -> list[str]:
    """Words as Kubernetes passes them on unchanged: it would replace $(NAME)."""
    return [word.replace("$", "$$") for word in argv]


def _place() -> list[dict[str, Any]]:
    paths = (
        "metadata.labels['jobset.sigs.k8s.io/job-index']",
        "metadata.annotations['batch.kubernetes.io/job-completion-index']",
    )
    return [
        {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}
        for name, path in zip(host.HOST_NUMBERS, paths, strict=True)
    ]


def _values(variables: dict[str, str]) -> list[dict[str, Any]]:
    return [{"name": name, "value": value} for name, value in variables.items()]


def _secrets(wanted: list[str]) -> list[dict[str, Any]]:
    """Names alone: the value stays in the cluster."""
    found = [
        re.fullmatch(r"([A-Za-z_]\w*)=([a-z0-9][-.a-z0-9]*)/([-.\w]+)", text, re.ASCII)
        for text in wanted
    ]
    if not all(found):
        raise ConfigError(
            "--secret takes names, never a value: write it as VARIABLE=SECRET/KEY"
        )  # which is why it is not repeated here
    return [
        {
            "name": each[1],
            "valueFrom": {"secretKeyRef": {"name": each[2], "key": each[3]}},
        }
        for each in found
        if each
    ]


def _node_selector(shape: Shape, further: list[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in further]
    if not all(separator for _, separator, _ in pairs):
        raise ConfigError(
            f"--node_selector={' '.join(further)} is not LABEL=VALUE: write it so"
        )
    if not shape.is_tpu:
        own = {"cloud.google.com/gke-accelerator": shape.chip.gke_accelerator}
    else:
        topology = "x".join(map(str, shape.sides))
        own = {
            "cloud.google.com/gke-tpu-accelerator": shape.chip.gke_accelerator,
            "cloud.google.com/gke-tpu-topology": topology,
        }
    return {label: value for label, _, value in pairs} | own


def _security(shape: Shape) -> dict[str, Any]:
    """No privileges. A TPU's device files are root's, and its driver pins memory, for which root must raise a limit (`host`)."""
    allowed = (
        {"runAsUser": 0} if shape.is_tpu else {"runAsUser": USER, "runAsNonRoot": True}
    )
    capabilities = {"drop": ["ALL"]} | (
        {"add": ["SYS_RESOURCE"]} if shape.is_tpu else {}
    )
    return {
        "privileged": False,
        "allowPrivilegeEscalation": False,
        **allowed,
        "capabilities": capabilities,
    }


if __name__ == "__main__":
    sys.exit(launching.main(JobSet(), sys.argv[1:]))
