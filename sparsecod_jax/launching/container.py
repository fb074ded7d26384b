"""How does a wheel become a program in a container of stock Python? Wheels: fetch, install, run.

The wheel is fetched from its bucket and installed into a folder, from which it is run.
"""

import os
import urllib.parse

from sparsecod_jax.launching.package import CodePackage

PYTHON = "3.11"
PYTHON_IMAGE = f"python:{PYTHON}-slim"
# Reads buckets as whoever runs the host.
CLOUD_IMAGE = "gcr.io/google.com/cloudsdktool/google-cloud-cli:slim"


class Wheel:
    """Commands and paths for the wheel of a package.

    Attributes:
      folder: a volume that the containers of a host share; all else lies in it.
      workdir: where configs/ is, and where commands run.
      environment: variables for these commands.
      fetch: the command that copies the wheel and what lies beside it from its bucket.
      install: the command that installs the wheel.
    """

    folder = "/code"

    def __init__(self, code_package: CodePackage, extra: str):
        assert code_package.wheel, "an image needs no wheel"
        source, name = os.path.split(code_package.wheel)
        self.workdir = f"{self.folder}/{os.path.basename(source)}"
        site = f"{self.folder}/site"
        # What is imported is what was installed and checked, never what else lies in the
        # folder that commands run in.
        self.environment = {"PYTHONPATH": site, "PYTHONSAFEPATH": "1", "HOME": "/tmp"}
        self.fetch = ["gcloud", "storage", "cp", source, self.folder, "--recursive"]
        version = PYTHON.replace(".", "")
        url = f"file://{urllib.parse.quote(f'{self.workdir}/{name}')}"
        self.install = [
            *("python", "-m", "pip", "install"),
            *("--quiet", "--no-cache-dir", "--upgrade"),
            f"--target={site}",
            f"--constraint={self.workdir}/constraints/py{version}.txt",
            f"sparsecod-jax[{extra},gcs] @ {url}#sha256={code_package.sha256}",
        ]
