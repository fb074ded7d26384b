"""How does a wheel become a program in a container of stock Python? Fetched from its bucket, installed into a folder, and run there."""

import os
import urllib.parse

from sparsecod_jax.launching.package import CodePackage

PYTHON = "3.11"
PYTHON_IMAGE = f"python:{PYTHON}-slim"
CLOUD_IMAGE = "gcr.io/google.com/cloudsdktool/google-cloud-cli:slim"  # reads buckets as whoever runs the host


class Wheel:
    """Words and places; what is fetched and installed lies in `folder`, a volume that the containers of a host share."""

    folder = "/code"

    def __init__(self, code_package: CodePackage, extra: str):
        assert code_package.wheel, "an image needs no wheel"
        source, name = os.path.split(code_package.wheel)
        self.workdir = (
            f"{self.folder}/{os.path.basename(source)}"  # configs/ lies there
        )
        site = f"{self.folder}/site"
        # What is imported is what was installed and checked, never what else lies in the folder that commands run in.
        self.environment = {"PYTHONPATH": site, "PYTHONSAFEPATH": "1", "HOME": "/tmp"}
        self.fetch = ["gcloud", "storage", "cp", source, self.folder, "--recursive"]
        self.install = [
            *(
                "python",
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-cache-dir",
                "--upgrade",
                f"--target={site}",
            ),
            f"--constraint={self.workdir}/constraints/py{PYTHON.replace('.', '')}.txt",
            f"sparsecod-jax[{extra},gcs] @ file://{urllib.parse.quote(f'{self.workdir}/{name}')}#sha256={code_package.sha256}",
        ]
