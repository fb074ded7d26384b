"""The wheel of a commit: only of a clean one, the same each time, and enough to run from."""

import argparse
import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from sparsecod_jax import __version__
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.launching import package
from tests.support import process


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A clean clone of what is committed here."""
    clone = tmp_path / "clone"
    command = ["git", "clone", "--quiet", str(process.ROOT), str(clone)]
    subprocess.run(command, check=True)
    monkeypatch.setattr(package, "ROOT", clone)
    return clone


def _args(workdir: Path, *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", default=str(workdir))
    parser.add_argument("--data_path")
    package.add_arguments(parser)
    return parser.parse_args(words)


def test_files_that_are_not_committed_are_refused_or_recorded(checkout, tmp_path):
    args = _args(tmp_path)
    package.check(args, shares_files=True)
    assert not package.pack_code(args).dirty
    (checkout / "sparsecod_jax" / "new.py").write_text("x = 1\n")
    message = "are not committed: commit them, or give --allow_dirty"
    with pytest.raises(ConfigError, match=message):
        package.check(args, shares_files=True)
    package.check(_args(tmp_path, "--allow_dirty"), shares_files=True)
    code_package = package.pack_code(args)
    assert code_package.dirty
    command = ["git", "-C", checkout, "rev-parse", "HEAD"]
    head = subprocess.run(command, capture_output=True, text=True)
    assert code_package.commit == head.stdout.strip()


@pytest.mark.parametrize(
    ("words", "shares_files", "message"),
    [
        (("--image=x",), True, "--image is for pods"),
        ((), False, "say how code gets there: --image=NAME or --package=wheel"),
    ],
)
def test_how_code_gets_to_a_pod_must_be_given(words, shares_files, message, tmp_path):
    args = _args(tmp_path, "--allow_dirty", *words)
    with pytest.raises(ConfigError, match=message):
        package.check(args, shares_files=shares_files)


def test_the_same_commit_makes_the_same_wheel_whose_version_names_it_and_which_runs(
    checkout, tmp_path
):
    options = ("--package=wheel", "--data_path=gs://bucket/data")
    first, second = (
        package.pack_code(_args(tmp_path / name, *options)) for name in "ab"
    )
    assert first.sha256 == second.sha256
    assert first.data == "gs://bucket/data"
    wheel = Path(first.wheel or "")
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() == first.sha256
    assert wheel.name == f"sparsecod_jax-{__version__}+g{first.commit}-py3-none-any.whl"
    names = zipfile.ZipFile(wheel).namelist()
    assert "sparsecod_jax/cli.py" in names
    assert not [name for name in names if name.startswith(("tests/", "configs/"))]
    folder = wheel.parent
    for name in ("constraints/py311.txt", "configs/dense_1b.py", "launch/slurm_job.sh"):
        assert (folder / name).read_bytes() == (checkout / name).read_bytes()
    code = (
        "import sparsecod_jax; print(sparsecod_jax.__file__, sparsecod_jax.__version__)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=True
    )
    file, version = done.stdout.split()
    assert file == str(folder / "sparsecod_jax" / "__init__.py")
    assert version == f"{__version__}+g{first.commit}"


def test_a_wheel_of_files_that_are_not_committed_has_them_and_says_so(
    checkout, tmp_path
):
    (checkout / "sparsecod_jax" / "new.py").write_text("x = 1\n")
    (checkout / "LICENSE").unlink()
    args = _args(tmp_path / "a", "--package=wheel", "--allow_dirty")
    code_package = package.pack_code(args)
    assert code_package.wheel
    assert "dirty" in Path(code_package.wheel).name
    assert "sparsecod_jax/new.py" in zipfile.ZipFile(code_package.wheel).namelist()
