"""What xpk, Google's launcher, would ask of GKE.

An independent word on node selectors, chips per host and pods.
`python tests/support/xpk.py` writes tests/golden/xpk.json anew.
"""

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import yaml

GOLDEN = Path(__file__).parents[1] / "golden" / "xpk.json"

# Our name, and xpk's; a type of xpk means one slice.
TYPES = {
    "v4:2x2x2": "v4-16",
    "v4:4x4x4": "v4-128",
    "v5e:2x4": "v5litepod-8",
    "v5e:4x4": "v5litepod-16",
    "v5e:16x16": "v5litepod-256",
    "v5p:2x2x1": "v5p-8",
    "v5p:2x2x4": "v5p-32",
    "v5p:4x4x4": "v5p-128",
    "v5p:4x4x4*2": "v5p-128",
    "v6e:2x4": "v6e-8",
    "v6e:8x8": "v6e-64",
    "v6e:4x4*3": "v6e-16",
}


def command(topology: str, manifest: str) -> list[str]:
    """The command that asks xpk; nothing leaves this machine."""
    _, _, slices = topology.partition("*")
    return [
        *("xpk", "workload", "create", "--workload=w", "--cluster=c", "--project=p"),
        *("--zone=z-z1-a", "--docker-image=i", "--command=true"),
        f"--tpu-type={TYPES[topology]}",
        f"--num-slices={slices or 1}",
        *("--dry-run", "--skip-validation", f"--output-manifest-file={manifest}"),
    ]


def facts(topology: str) -> dict[str, Any]:
    """What xpk, which is installed, asks for."""
    with tempfile.TemporaryDirectory() as home:
        file = os.path.join(home, "manifest.yaml")
        subprocess.run(
            command(topology, file),
            env=os.environ | {"HOME": home, "CLOUDSDK_CONFIG": home},
            check=True,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        return of_manifest(yaml.safe_load(Path(file).read_text()))


def of_manifest(jobset: dict[str, Any]) -> dict[str, Any]:
    """What must agree between two JobSets for one topology."""
    [replicated] = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    [container] = pod["containers"]
    limits = container["resources"]["limits"]
    return {
        "slices": replicated["replicas"],
        "parallelism": job["parallelism"],
        "completions": job["completions"],
        "node_selector": dict(sorted(pod["nodeSelector"].items())),
        "limits": {name: int(value) for name, value in limits.items()},
    }


def main() -> None:
    done = subprocess.run(
        ["xpk", "version"], check=True, capture_output=True, text=True
    )
    _, _, version = done.stdout.partition("xpk_version: ")
    golden = {
        "version": version.split()[0],
        "commands": {name: " ".join(command(name, "FILE")) for name in TYPES},
        "facts": {name: facts(name) for name in TYPES},
    }
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
