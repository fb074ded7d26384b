"""Small file systems that can be filled, or made to fail, where this user may mount some."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def mounted(folder: Path, size: str, kind: str = "tmpfs") -> Iterator[Path]:
    """A file system while the context lasts; skips the test if mounting is not permitted.

    Args:
      folder: where it is mounted.
      size: such as "24m".
      kind: tmpfs, or ext4, which `fail` can make read-only.
    """
    folder.mkdir()
    if kind == "ext4":
        subprocess.run(["truncate", f"--size={size}", _image(folder)], check=True)
        subprocess.run(["mkfs.ext4", "-q", _image(folder)], check=False)
    try:
        _mount(folder, size, kind)
    except subprocess.CalledProcessError:
        pytest.skip("may not mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def _mount(folder: Path, size: str, kind: str) -> None:
    options = ["-t", "tmpfs", "-o", f"size={size}", "tmpfs"]
    if kind == "ext4":
        options = ["-o", "loop,errors=remount-ro", _image(folder)]
    subprocess.run(["mount", *options, folder], capture_output=True, check=True)


def _image(folder: Path) -> Path:
    """The file that holds an ext4."""
    return folder.with_name(f"{folder.name}.ext4")


def fill(folder: Path) -> Path:
    """Fills the file system; returns the file that does."""
    ballast = folder / "ballast"
    with open(ballast, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return ballast


def fail(folder: Path) -> None:
    """Makes an ext4 read-only while it is in use, as an error of its disk does."""
    subprocess.run(["sync", "--file-system", folder], check=True)
    device = subprocess.run(
        ["findmnt", "--noheadings", "--output=SOURCE", folder],
        capture_output=True,
        text=True,
        check=True,
    )
    name = Path(device.stdout.strip()).name
    Path("/sys/fs/ext4", name, "trigger_fs_error").write_text("1")


def mend(folder: Path) -> None:
    """Mounts an ext4 again that `fail` made read-only."""
    subprocess.run(["umount", folder], check=True)
    subprocess.run(
        ["fsck.ext4", "-y", _image(folder)], capture_output=True, check=False
    )
    _mount(folder, "", "ext4")
