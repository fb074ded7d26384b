"""How does code reach a pod? In an image, or as a wheel of exactly what is committed here."""

import argparse
import dataclasses
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from etils import epath

from sparsecod_jax import __version__
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.storage import files
from sparsecod_jax.storage.commit import commit as code_commit

ROOT = Path(__file__).resolve().parents[2]
UNKNOWN = (
    "does not know its commit: build it from a git checkout, or send studies from one"
)
BESIDE = ("configs", "constraints", "launch")  # what runs need and a wheel has not


@dataclasses.dataclass(frozen=True)
class CodePackage:
    """How code and data get there."""

    image: str | None  # of a container that holds everything
    wheel: (
        str | None
    )  # a path or URL in the study directory; configs/ and constraints/ lie beside it, and commands run in that folder
    sha256: str | None  # of the wheel
    commit: str  # of the checkout that sent it
    dirty: bool  # whether files differed from it
    data: str | None  # in place of the data.path of all runs; the commands say it too


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `check` and `ship` read."""
    code = parser.add_mutually_exclusive_group()
    code.add_argument(
        "--image",
        help="container image that holds the package and its configs, as the Dockerfile makes it",
    )
    code.add_argument(
        "--package",
        choices=("wheel",),
        metavar="KIND",
        help="wheel: built from the commit, kept in the study directory",
    )
    parser.add_argument(
        "--allow_dirty",
        action="store_true",
        help="send files that are not committed; it is recorded",
    )


def check(args: argparse.Namespace, *, shares_files: bool) -> None:
    """Refuses code that can't be sent, or could not be found again.

    Raises:
      ConfigError: how code gets there is not said, or files differ from the commit.
    """
    if shares_files and args.image:
        raise ConfigError(
            "--image is for pods: leave it out, as the hosts see this checkout, or give --package=wheel"
        )
    if not shares_files and not (args.image or args.package):
        raise ConfigError("say how code gets there: --image=NAME or --package=wheel")
    if commit().endswith(".dirty") and not args.allow_dirty:
        raise ConfigError(
            f"files of {ROOT} are not committed: commit them, or give --allow_dirty, which is recorded"
        )


def ship(args: argparse.Namespace) -> CodePackage:
    """Puts the code where the runs find it, and says what it is.

    Raises:
      ConfigError: the wheel can't be built.
    """
    version = commit()
    wheel = sha256 = None
    if args.package:
        with tempfile.TemporaryDirectory() as folder:
            built = _build(Path(folder), version)
            sha256 = hashlib.sha256(built.read_bytes()).hexdigest()
            target = (
                files.absolute(args.workdir) / "package" / sha256[:16]
            )  # what waiting runs use is not replaced
            if files.is_remote(target) or not target.exists():
                _copy(built, target)
            wheel = os.fspath(target / built.name)
    return CodePackage(args.image, wheel, sha256, *_version(), args.data)


def rehearse(args: argparse.Namespace) -> CodePackage:
    """What `ship` would return, of a wheel that is not there."""
    nowhere = (
        (
            os.fspath(files.absolute(args.workdir) / "package" / "0" / "rehearsal.whl"),
            "0" * 64,
        )
        if args.package
        else (None, None)
    )
    return CodePackage(args.image, *nowhere, *_version(), args.data)


def _version() -> tuple[str, bool]:
    """The commit, and whether files differ from it."""
    version = commit()
    return version.removesuffix(".dirty"), version.endswith(".dirty")


def _build(folder: Path, version: str) -> Path:
    """A wheel of the files that git knows or would, whose version ends with the commit, which manifests then show."""
    tree = folder / "tree"
    for name in filter(
        None,
        _git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split(
            "\0"
        ),
    ):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, tree / name)
    module = tree / "sparsecod_jax" / "__init__.py"
    module.write_text(
        module.read_text().replace(f'"{__version__}"', f'"{__version__}+g{version}"')
    )
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        f"--wheel-dir={folder}",
        os.fspath(tree),
    ]
    surroundings = os.environ | {
        "SOURCE_DATE_EPOCH": _git("log", "-1", "--format=%ct")
    }  # the same commit makes the same bytes
    made = subprocess.run(
        command, env=surroundings, capture_output=True, text=True, check=False
    )
    if made.returncode:
        raise ConfigError(
            f"the wheel can't be built ({(made.stderr.strip() or 'no reason given').splitlines()[-1]}): try pip wheel by hand"
        )
    return next(folder.glob("*.whl"))


def _copy(wheel: Path, target: epath.Path) -> None:
    """Fills the folder where runs work: the package, unpacked for hosts that see this folder, and what it needs."""
    with files.new_folder(target) as folder:
        shutil.copy(wheel, folder)
        for name in BESIDE:
            shutil.copytree(wheel.parent / "tree" / name, folder / name)
        if not files.is_remote(target):
            shutil.unpack_archive(wheel, folder, "zip")


def commit() -> str:
    """The commit of this code, ending with ".dirty" where files differed from it.

    Raises:
      ConfigError: this is no checkout, and no package that was built from one.
    """
    if (ROOT / ".git").exists():
        changed = _git("status", "--porcelain")
        return _git("rev-parse", "HEAD") + (".dirty" if changed else "")
    built_from = code_commit()
    if built_from is None:
        raise ConfigError(f"the package in {ROOT} {UNKNOWN}")
    return built_from.replace("-dirty", ".dirty")


def _git(*argv: str) -> str:
    done = subprocess.run(
        ["git", "-C", os.fspath(ROOT), *argv],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ConfigError(
            f"{ROOT} is no git checkout ({done.stderr.strip()}): send studies from one"
        )
    return done.stdout.strip()
