"""How does code reach a pod? Code packages: an image, or a wheel of one commit.

A wheel has exactly what is committed in this checkout.
"""

import dataclasses
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from argparse import ArgumentParser, Namespace
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
    # A path or URL in the study directory. configs/ and constraints/ lie beside it, and
    # commands run in that folder.
    wheel: str | None
    sha256: str | None  # of the wheel
    commit: str  # of the checkout that sent it
    dirty: bool  # whether files differed from it
    data: str | None  # in place of the data.path of all runs; also in their commands


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options that `check` and `pack_code` read."""
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


def check(args: Namespace, *, shares_files: bool) -> None:
    """Refuses code that can't be sent, or could not be found again.

    Raises:
      ConfigError: no option names how code gets there, or files differ from the commit.
    """
    if shares_files and args.image:
        raise ConfigError(
            "--image is for pods: leave it out, as the hosts see this checkout,"
            " or give --package=wheel"
        )
    if not shares_files and not (args.image or args.package):
        raise ConfigError("say how code gets there: --image=NAME or --package=wheel")
    _, dirty = _version()
    if dirty and not args.allow_dirty:
        raise ConfigError(
            f"files of {ROOT} are not committed:"
            " commit them, or give --allow_dirty, which is recorded"
        )


def pack_code(args: Namespace) -> CodePackage:
    """Puts the code where the runs find it.

    Returns:
      What engines and records need to know of it.

    Raises:
      ConfigError: the wheel can't be built.
    """
    if not args.package:
        return CodePackage(args.image, None, None, *_version(), args.data_path)
    with tempfile.TemporaryDirectory() as folder:
        built = _build(Path(folder), commit())
        sha256 = hashlib.sha256(built.read_bytes()).hexdigest()
        # Named by its content: what waiting runs use is not replaced.
        target = _packages(args) / sha256[:16]
        if files.is_remote(target) or not target.exists():
            _copy(built, target)
        wheel = os.fspath(target / built.name)
    return CodePackage(None, wheel, sha256, *_version(), args.data_path)


def rehearse(args: Namespace) -> CodePackage:
    """What `pack_code` would return, for a wheel that does not exist."""
    wheel = sha256 = None
    if args.package:
        wheel = os.fspath(_packages(args) / "0" / "rehearsal.whl")
        sha256 = "0" * 64
    return CodePackage(args.image, wheel, sha256, *_version(), args.data_path)


def _packages(args: Namespace) -> epath.Path:
    return files.absolute(args.workdir) / "package"


def _version() -> tuple[str, bool]:
    """The commit, and whether files differ from it."""
    version = commit()
    return version.removesuffix(".dirty"), version.endswith(".dirty")


def _build(folder: Path, version: str) -> Path:
    """A wheel of the files that git tracks or would track.

    Its version ends with the commit, which manifests then show.
    """
    tree = folder / "tree"
    _copy_tracked_files(tree)
    # In the copy, never in the checkout.
    module = tree / "sparsecod_jax" / "__init__.py"
    text = module.read_text()
    module.write_text(text.replace(f'"{__version__}"', f'"{__version__}+g{version}"'))
    command = [
        *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"),
        f"--wheel-dir={folder}",
        os.fspath(tree),
    ]
    # The same commit makes the same bytes.
    commit_time = _git("log", "-1", "--format=%ct")
    environment = os.environ | {"SOURCE_DATE_EPOCH": commit_time}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        errors = done.stderr.strip() or "no reason given"
        raise ConfigError(
            f"the wheel can't be built ({errors.splitlines()[-1]}): try pip wheel by hand"
        )
    return next(folder.glob("*.whl"))


def _copy_tracked_files(tree: Path) -> None:
    """Copies what git tracks or would track, as it is in this checkout."""
    listed = _git("ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in listed.split("\0"):
        source = ROOT / name
        target = tree / name
        # A file that was deleted without a commit is still listed.
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


def _copy(wheel: Path, target: epath.Path) -> None:
    """Fills the folder where runs work: the package and what it needs.

    For hosts that see this folder the package is unpacked.
    """
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
        revision = _git("rev-parse", "HEAD")
        is_changed = _git("status", "--porcelain") != ""
        return f"{revision}.dirty" if is_changed else revision
    built_from = code_commit()
    if built_from is None:
        raise ConfigError(f"the package in {ROOT} {UNKNOWN}")
    return built_from.replace("-dirty", ".dirty")


def _git(*argv: str) -> str:
    """The output of git in this checkout."""
    command = ["git", "-C", os.fspath(ROOT), *argv]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(
            f"{ROOT} is no git checkout ({done.stderr.strip()}): send studies from one"
        )
    return done.stdout.strip()
