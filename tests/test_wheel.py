"""The built wheel works alone, outside a checkout: configs, studies, launchers, commit."""

import json
import os
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.support import emulator, process

ROOT = Path(__file__).resolve().parents[1]
POD = (
    "--image=registry/image:tag",
    "--topology=v5p:4x4x4",
    "--data_path=gs://bucket/data",
)
LAUNCHERS = {
    "slurm": ("--workdir={study}", "--topology=h100:1x8"),
    "jobset": ("--workdir=gs://bucket/study", *POD),
    "tpu_vm": ("--workdir=gs://bucket/study", "--project=p", "--zone=z", *POD),
}


def _run(*words, cwd: Path | None = None) -> str:
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    environment.pop("PYTHONPATH", None)  # which might name the checkout
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _git(folder: Path, *words) -> str:
    author = ("-c", "user.name=a", "-c", "user.email=a@b")
    return _run("git", "-C", folder, *author, *words).strip()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> tuple[Path, str]:
    """A wheel of what is committed here, and the commit."""
    folder = tmp_path_factory.mktemp("wheel")
    _run("git", "clone", "--quiet", ROOT, folder / "clone")
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps")
    _run(*pip, f"--wheel-dir={folder}", folder / "clone")
    return next(folder.glob("*.whl")), _git(folder / "clone", "rev-parse", "HEAD")


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The bin folder of a new environment that has the wheel and this one's dependencies.

    It lies in somebody else's checkout, whose commit is not ours.
    """
    folder = tmp_path_factory.mktemp("theirs")
    _git(folder, "init", "--quiet")
    _git(folder, "commit", "--quiet", "--allow-empty", "--message=theirs")
    environment = folder / "venv"
    _run(sys.executable, "-m", "venv", environment)
    python = environment / "bin" / "python"
    place = _run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
    dependencies = Path(place.strip()) / "dependencies.pth"
    _run(python, "-m", "pip", "install", "--quiet", "--no-deps", wheel[0])
    dependencies.write_text(sysconfig.get_path("purelib") + "\n")
    return environment / "bin"


@pytest.fixture(scope="module")
def trained(installed, tmp_path_factory) -> Path:
    """A folder outside every checkout, with data and a run of the config `smoke`."""
    folder = tmp_path_factory.mktemp("elsewhere")
    data = ("--source=sotu", "--max_documents=20", "--out=data/sotu")
    _run(installed / "sparsecod", "data", *data, cwd=folder)
    sizes = ("model.d_model=16", "global_batch=4", "steps=20")
    _run(
        installed / "sparsecod",
        "train",
        "--config=smoke:nano",
        "--workdir=runs/smoke",
        *(f"--config.{size}" for size in sizes),
        cwd=folder,
    )
    return folder


def test_the_manifest_names_the_commit_of_the_wheel(trained, wheel):
    manifest = json.loads((trained / "runs/smoke/manifest.json").read_text())
    assert manifest["commit"] == wheel[1]


def test_a_run_is_drawn(trained, installed):
    _run(installed / "sparsecod", "report", "--workdir=runs/smoke", cwd=trained)
    assert (trained / "runs" / "smoke" / "report.html").exists()


def test_a_study_is_known_by_name(trained, installed):
    words = ("sweep", "--sweep=smoke", "--workdir=runs/study", "--dry_run")
    listed = _run(installed / "sparsecod", *words, cwd=trained)
    assert "depth-04-s0" in listed
    assert "depth-16-s1" in listed


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launchers_render(launcher, trained, installed):
    pytest.importorskip("gcp_storage_emulator")
    gcsfs = pytest.importorskip("gcsfs")
    module = f"sparsecod_jax.launch.{launcher}"
    options = [word.format(study=trained / "study") for word in LAUNCHERS[launcher]]
    command = (installed / "python", "-P", "-m", module, "render", "--sweep=depth:nano")
    with emulator.running(process.free_port()):
        bucket = gcsfs.GCSFileSystem()
        bucket.put(str(trained / "data" / "sotu"), "bucket/data", recursive=True)
        printed = _run(*command, *options, cwd=trained)
    assert printed.startswith("rendered: ")


def test_tasks_of_slurm_run_what_is_installed(trained, installed):
    options = ("--sweep=depth:nano", f"--workdir={trained}/study")
    launcher = (installed / "python", "-P", "-m", "sparsecod_jax.launch.slurm")
    _run(*launcher, "render", *options, "--topology=h100:1x8", cwd=trained)
    folder = trained / "study" / "slurm"
    _, script = json.loads((folder / "sbatch.json").read_text())
    assert Path(script[0]).exists()
    assert script[1:4] == [
        str(installed / "python"),
        "-m",
        "sparsecod_jax.launch.slurm_task",
    ]
    assert "depth-32-s0" in Path(script[4]).read_text()


@pytest.mark.slow
def test_everything_from_an_empty_environment(wheel, tmp_path):
    """The wheel with its demo, as a user installs it: a study is trained and drawn."""
    _run(sys.executable, "-m", "venv", tmp_path / "venv")
    version = f"py{sys.version_info.major}{sys.version_info.minor}"
    constraints = ROOT / "constraints" / f"{version}.txt"
    pip = (tmp_path / "venv/bin/pip", "install", "--quiet", "--constraint", constraints)
    _run(*pip, f"{wheel[0]}[demo]")
    sparsecod = tmp_path / "venv" / "bin" / "sparsecod"
    study = "--workdir=study"
    _run(sparsecod, "sweep", "--sweep=smoke", study, "--jobs=2", cwd=tmp_path)
    _run(sparsecod, "report", study, cwd=tmp_path)
    assert (tmp_path / "study" / "report.html").exists()


def test_dependencies_have_the_lowest_versions_that_are_tested():
    """Each lower bound is, to as many places, the lowest of the constraints files."""
    tested: dict[str, list[Version]] = {}
    for file in (ROOT / "constraints").glob("*.txt"):
        for line in file.read_text().splitlines():
            name, _, version = line.partition("==")
            if version:
                tested.setdefault(canonicalize_name(name), []).append(Version(version))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    for text in [
        *project["dependencies"],
        *(word for extra in extras for word in extra),
    ]:
        requirement = Requirement(text)
        if requirement.name == project["name"]:
            continue
        bounds = [bound for bound in requirement.specifier if bound.operator == ">="]
        lowest = min(tested[canonicalize_name(requirement.name)])
        assert len(bounds) == 1, text
        places = len(Version(bounds[0].version).release)
        assert Version(bounds[0].version).release == lowest.release[:places], text
