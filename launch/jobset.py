"""How is a study sent to a Kubernetes cluster on Google Cloud? JobSets: one per run, as JSON.

    python launch/jobset.py submit --sweep=configs/sweeps/depth.py:paper \
        --workdir=gs://BUCKET/depth --topology=v5p:4x4x4 --image=IMAGE

It works with or without Kueue. docs/launch.md leads from an empty project to a first run.
"""

import json
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from sparsecod_jax.launching import launching
from sparsecod_jax.launching.commands import output_of
from sparsecod_jax.launching.jobset_manifest import STUDY, manifest, name_of
from sparsecod_jax.launching.launching import Job
from sparsecod_jax.launching.package import CodePackage

KIND = "jobsets.jobset.x-k8s.io"
ENDED = ("Completed", "Failed")  # conditions of a JobSet that does nothing more


class JobSet:
    """Sends runs with kubectl."""

    name = "jobset"
    shares_files = False

    def add_arguments(self, parser: ArgumentParser) -> None:
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
        self, jobs: list[Job], code_package: CodePackage, args: Namespace
    ) -> dict[str, bytes]:
        """One manifest per run."""
        rendered = {}
        for job in jobs:
            content = json.dumps(manifest(job, code_package, args), indent=1)
            rendered[f"{job.name}.json"] = content.encode()
        return rendered

    def submit(self, files: dict[str, Path], jobs: list[Job], args: Namespace) -> None:
        """Creates what is absent; what ended is deleted first, as its name is taken."""
        states = self.query(jobs, args)
        for job in jobs:
            if states.get(job.name) in launching.LIVE:
                continue
            if job.name in states:
                self.cancel([job], args)
            file = files[f"{job.name}.json"]
            # Strict: a JobSet older than 0.10.1 would drop the patterns of the failure
            # policy, and end preempted runs.
            output_of(
                _kubectl(args, "create", "--validate=strict", f"--filename={file}")
            )

    def query(self, jobs: list[Job], args: Namespace) -> dict[str, str]:
        """States of all JobSets with the label of this study."""
        selector = f"--selector={STUDY}={launching.study_id(args)}"
        output = output_of(_kubectl(args, "get", KIND, selector, "--output=json"))
        states = {}
        for jobset in json.loads(output)["items"]:
            name = jobset["metadata"]["name"]
            states[name] = _state(jobset)
        # Other runs of the study may have been sent with it.
        found = {}
        for job in jobs:
            name = name_of(job, args)
            if name in states:
                found[job.name] = states[name]
        return found

    def cancel(self, jobs: list[Job], args: Namespace) -> None:
        """Deletes the JobSets, and waits until their pods are gone."""
        names = [name_of(job, args) for job in jobs]
        how = ("--ignore-not-found", "--cascade=foreground", "--wait")
        output_of(_kubectl(args, "delete", KIND, *names, *how))


def _kubectl(args: Namespace, *words: str) -> list[str]:
    """A command for the cluster and namespace of the options."""
    where = [f"--namespace={args.namespace}"]
    if args.context:
        where.append(f"--context={args.context}")
    return ["kubectl", *where, *words]


def _state(jobset: dict[str, Any]) -> str:
    """One word for what a JobSet does, see `launching.Engine.query`."""
    status = jobset.get("status", {})
    # A condition that does not hold may be listed too.
    conditions = [
        condition["type"]
        for condition in status.get("conditions", [])
        if condition["status"] == "True"
    ]
    for condition in ENDED:
        if condition in conditions:
            return condition.lower()
    if "deletionTimestamp" in jobset["metadata"]:
        return "deleted"
    replicated_jobs = status.get("replicatedJobsStatus", [])
    active = any(each.get("active") for each in replicated_jobs)
    # Kueue suspends a JobSet until there is room for it.
    if active and "Suspended" not in conditions:
        return "running"
    return "pending"


if __name__ == "__main__":
    sys.exit(launching.main(JobSet(), sys.argv[1:]))
