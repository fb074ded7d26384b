"""What does a wheel hold beside the package's own folder?

Wheels: `configs/` and `launch/`, which lie at the top level of a checkout, and the commit of
the checkout. Everything else is in pyproject.toml.
"""

import os
import shutil
import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
BESIDE = ("configs", "launch")
NOT_CODE = shutil.ignore_patterns("__pycache__")


class BuildWithConfigs(build_py):
    """Also copies the folders beside the package, and writes commit.txt."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        package = Path(self.build_lib, "sparsecod_jax")
        for name in filter(os.path.isdir, BESIDE):
            target = package / name
            shutil.copytree(name, target, ignore=NOT_CODE, dirs_exist_ok=True)
        commit = _commit()
        if commit:
            (package / "commit.txt").write_text(f"{commit}\n")


def _commit() -> str:
    """The commit in the version, or that of this checkout; nothing elsewhere."""
    version = (ROOT / "sparsecod_jax" / "__init__.py").read_text()
    _, _, local = version.partition("+g")
    if local:
        return local.split('"')[0]
    if not (ROOT / ".git").exists():
        return ""
    describe = ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    command = ["git", "-C", str(ROOT), *describe]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git
        return ""
    return done.stdout.strip()


setup(cmdclass={"build_py": BuildWithConfigs})
