"""What does Kubernetes get for a run? JobSet manifests: Jobs, pods and containers, as JSON."""

import json
import re
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from sparsecod_jax import errors
from sparsecod_jax.errors import ConfigError, Fenced, Preempted
from sparsecod_jax.launching import host, launching
from sparsecod_jax.launching.container import CLOUD_IMAGE, PYTHON_IMAGE, Wheel
from sparsecod_jax.launching.launching import Job
from sparsecod_jax.launching.package import CodePackage
from sparsecod_jax.plan import topologies
from sparsecod_jax.plan.topologies import Shape

STUDY = "sparsecod-study"  # label
LONGEST_POD_NAME = 63
USER = 1000  # the Dockerfile's
GRACE = 300  # seconds to save in; a spot node is gone sooner, whatever is asked for
COORDINATOR_PORT = 8476
FINAL = sorted((*errors.FINAL, Fenced.exit_code))
# How Kubernetes ends the message of a Job that a rule of its podFailurePolicy failed.
RULE_MESSAGE = "matching FailJob rule at index {}$"

Json = dict[str, Any]  # an object of Kubernetes


def name_of(job: Job, args: Namespace) -> str:
    """The name of a run's JobSet, unique in its namespace."""
    return f"{job.name}-{launching.study_id(args)}"


def manifest(job: Job, code_package: CodePackage, args: Namespace) -> Json:
    """The JobSet of a run.

    Raises:
      ConfigError: a name or the topology can't be what Kubernetes takes.
    """
    shape = topologies.shape(job.topology)
    # A TPU slice is a Job, its hosts the pods; GPU hosts are the pods of one Job.
    replicas, pods = shape.slices, shape.hosts
    if not shape.is_tpu:
        replicas, pods = 1, shape.slices
    name = name_of(job, args)
    _check(job, shape, f"{name}-r-{replicas - 1}-{pods - 1}-12345", args)
    labels = {STUDY: launching.study_id(args)}
    if args.queue:
        labels["kueue.x-k8s.io/queue-name"] = args.queue
    pod = _pod(job, shape, code_package, args)
    replicated_job = {
        "name": "r",
        "replicas": replicas,
        "template": {"spec": _job(pod, pods)},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": name,
            "namespace": args.namespace,
            "labels": labels,
            "annotations": _annotations(job, shape, code_package),
        },
        "spec": {
            "failurePolicy": _failure_policy(args.max_restarts),
            "replicatedJobs": [replicated_job],
        },
    }


def _check(job: Job, shape: Shape, longest_pod_name: str, args: Namespace) -> None:
    """Refuses what Kubernetes would not take."""
    if len(longest_pod_name) > LONGEST_POD_NAME:
        raise ConfigError(
            f"the names of pods of {job.name} would be longer than {LONGEST_POD_NAME}:"
            " shorten the name of its arm"
        )
    if shape.is_tpu and shape.slices > 1 and shape.hosts == 1:
        raise ConfigError(
            f"--topology={job.topology}: several slices must have several hosts each:"
            " take larger slices, or one"
        )
    if args.max_restarts < 0:
        raise ConfigError(f"--max_restarts={args.max_restarts} is below 0: raise it")


def _annotations(job: Job, shape: Shape, code_package: CodePackage) -> dict[str, str]:
    """A record of what was sent; and that a slice's nodes are one Job's alone."""
    annotations = {
        "sparsecod/commit": code_package.commit,
        "sparsecod/dirty": json.dumps(code_package.dirty),
        "sparsecod/workdir": job.workdir,
    }
    if code_package.sha256:
        annotations["sparsecod/wheel-sha256"] = code_package.sha256
    if shape.is_tpu and shape.hosts > 1:
        key = "alpha.jobset.sigs.k8s.io/exclusive-topology"
        annotations[key] = "cloud.google.com/gke-nodepool"
    return annotations


def _failure_policy(max_restarts: int) -> Json:
    """What follows by the rule of `_job` that failed the Job.

    Other failures restart all pods and are counted.
    """
    return {
        "maxRestarts": max_restarts,
        "rules": [
            _failure_rule("final", "FailJobSet", 0),
            _failure_rule("preempted", "RestartJobSetAndIgnoreMaxRestarts", 1, 2),
        ],
    }


def _failure_rule(name: str, action: str, *indices: int) -> Json:
    """The action for a Job that was failed by one of these rules of its pods."""
    return {
        "name": name,
        "action": action,
        "onJobFailureReasons": ["PodFailurePolicy"],
        "onJobFailureMessagePatterns": [
            RULE_MESSAGE.format(index) for index in indices
        ],
    }


def _job(pod: Json, pods: int) -> Json:
    """All pods or none: the first that fails ends the Job, which then names the rule.

    `_failure_policy` knows the rules by their index.
    """
    gone_before_it_could_save = {
        "action": "FailJob",
        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
    }
    rules = [
        _exit_codes_rule(FINAL),
        _exit_codes_rule([Preempted.exit_code]),
        gone_before_it_could_save,
    ]
    return {
        "parallelism": pods,
        "completions": pods,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": rules},
        "template": {"spec": pod},
    }


def _exit_codes_rule(codes: list[int]) -> Json:
    """Fails the Job when the run ends with one of these codes."""
    matched = {"containerName": "run", "operator": "In", "values": codes}
    return {"action": "FailJob", "onExitCodes": matched}


def _pod(job: Job, shape: Shape, code_package: CodePackage, args: Namespace) -> Json:
    device = "google.com/tpu" if shape.is_tpu else "nvidia.com/gpu"
    wheel = _wheel(shape, code_package)
    security = _security(shape)
    mounts, volumes = _volumes(shape, wheel)
    run: Json = {
        "name": "run",
        "image": code_package.image or PYTHON_IMAGE,
        "command": _command(job, shape, args),
    }
    environment: dict[str, str] = {}
    if wheel:
        run["workingDir"] = wheel.workdir
        environment = wheel.environment
    run |= {
        "env": [*_host_numbers(), *_values(environment), *_secrets(args.secret)],
        "resources": {"limits": {device: str(shape.chips_per_host)}},
        "securityContext": security,
        "volumeMounts": mounts,
    }
    pod: Json = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE,
        # Buckets are reached by the node's metadata server, and nothing else is asked of
        # Kubernetes.
        "automountServiceAccountToken": False,
    }
    if args.service_account:
        pod["serviceAccountName"] = args.service_account
    pod |= {
        "nodeSelector": _node_selector(shape, args.node_selector),
        "tolerations": [{"key": device, "operator": "Exists", "effect": "NoSchedule"}],
    }
    if wheel:
        pod["initContainers"] = _install_containers(wheel, security)
    return pod | {"containers": [run], "volumes": volumes}


def _wheel(shape: Shape, code_package: CodePackage) -> Wheel | None:
    """The wheel with the extra for these chips; None where the image holds the code."""
    if not code_package.wheel:
        return None
    return Wheel(code_package, "tpu" if shape.is_tpu else "gpu")


def _volumes(shape: Shape, wheel: Wheel | None) -> tuple[list[Json], list[Json]]:
    """Mounts of the container that runs, and the volumes of its pod."""
    mounts: list[Json] = []
    volumes: list[Json] = []
    if wheel:
        mounts.append(_code_mount(wheel))
        volumes.append({"name": "code", "emptyDir": {}})
    if not shape.is_tpu:
        # NCCL needs more shared memory than a container's 64 MB.
        mounts.append({"name": "shared", "mountPath": "/dev/shm"})
        volumes.append({"name": "shared", "emptyDir": {"medium": "Memory"}})
    return mounts, volumes


def _code_mount(wheel: Wheel) -> Json:
    """The volume into which the code is installed, from which it is run."""
    return {"name": "code", "mountPath": wheel.folder}


def _install_containers(wheel: Wheel, security: Json) -> list[Json]:
    """The containers that fetch and install a wheel before the run starts."""

    def container(name: str, image: str, argv: list[str]) -> Json:
        return {
            "name": name,
            "image": image,
            "command": _escaped(argv),
            "env": _values({"HOME": "/tmp"}),
            "securityContext": security,
            "volumeMounts": [_code_mount(wheel)],
        }

    return [
        container("fetch", CLOUD_IMAGE, wheel.fetch),
        container("install", PYTHON_IMAGE, wheel.install),
    ]


def _command(job: Job, shape: Shape, args: Namespace) -> list[str]:
    """The words that a container starts.

    Processes on GPUs get their number and their coordinator; those on TPUs find out.
    """
    train, *others = (_escaped(command) for command in job.commands)
    if not shape.is_tpu:
        train.append(f"--process_count={shape.slices}")
        if shape.slices > 1:
            name = name_of(job, args)
            _, number = host.HOST_NUMBERS
            train += [
                f"--coordinator={name}-r-0-0.{name}:{COORDINATOR_PORT}",
                f"--process_index=$({number})",
            ]
    several_tpu_hosts = shape.is_tpu and shape.hosts > 1
    return host.argv([train, *others], several_tpu_hosts=several_tpu_hosts)


def _escaped(argv: Sequence[str]) -> list[str]:
    """Words as Kubernetes passes them on unchanged: it would replace $(NAME)."""
    return [word.replace("$", "$$") for word in argv]


def _host_numbers() -> list[Json]:
    """The numbers of slice and host, which Kubernetes knows when the pod starts."""
    paths = (
        "metadata.labels['jobset.sigs.k8s.io/job-index']",
        "metadata.annotations['batch.kubernetes.io/job-completion-index']",
    )
    return [
        {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}
        for name, path in zip(host.HOST_NUMBERS, paths, strict=True)
    ]


def _values(variables: dict[str, str]) -> list[Json]:
    """Variables as Kubernetes writes them."""
    return [{"name": name, "value": value} for name, value in variables.items()]


def _secrets(options: list[str]) -> list[Json]:
    """Variables by the names of their secrets: the values stay in the cluster."""
    variables = []
    for option in options:
        match = re.fullmatch(
            r"([A-Za-z_]\w*)=([a-z0-9][-.a-z0-9]*)/([-.\w]+)", option, re.ASCII
        )
        if not match:
            # The option is not repeated here, as it may be the secret itself.
            raise ConfigError(
                "--secret takes names, never a value: write it as VARIABLE=SECRET/KEY"
            )
        reference = {"name": match[2], "key": match[3]}
        variables.append({"name": match[1], "valueFrom": {"secretKeyRef": reference}})
    return variables


def _node_selector(shape: Shape, options: list[str]) -> dict[str, str]:
    """Labels of the nodes: those of the options, and GKE's for the chips."""
    selector = {}
    for option in options:
        label, separator, value = option.partition("=")
        if not separator:
            raise ConfigError(
                f"--node_selector={' '.join(options)} is not LABEL=VALUE: write it so"
            )
        selector[label] = value
    accelerator = shape.chip.gke_accelerator
    if not shape.is_tpu:
        return selector | {"cloud.google.com/gke-accelerator": accelerator}
    return selector | {
        "cloud.google.com/gke-tpu-accelerator": accelerator,
        "cloud.google.com/gke-tpu-topology": "x".join(map(str, shape.sides)),
    }


def _security(shape: Shape) -> Json:
    """No privileges.

    A TPU's device files are root's, and its driver pins memory, for which root must raise
    a limit (`host`).
    """
    context: Json = {"privileged": False, "allowPrivilegeEscalation": False}
    if shape.is_tpu:
        capabilities = {"drop": ["ALL"], "add": ["SYS_RESOURCE"]}
        return context | {"runAsUser": 0, "capabilities": capabilities}
    return context | {
        "runAsUser": USER,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
    }
