"""Small file systems that can be filled, or made to fail, where this user may mount some."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def mounted(place: Path, size: str, kind: str = "tmpfs") -> Iterator[Path]:
    """A file system of that size while the context lasts; skips the test where mounting is not permitted.

    Args:
      kind: tmpfs, or ext4, which `fail` can make read-only.
    """
    place.mkdir()
    if kind == "ext4":
        subprocess.run(["truncate", f"--size={size}", _image(place)], check=True)
        subprocess.run(["mkfs.ext4", "-q", _image(place)], check=False)
    try:
        _mount(place, size, kind)
    except subprocess.CalledProcessError:
        pytest.skip("may not mount")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def _mount(place: Path, size: str, kind: str) -> None:
    words = (
        ["-t", "tmpfs", "-o", f"size={size}", "tmpfs"]
        if kind == "tmpfs"
        else ["-o", "loop,errors=remount-ro", _image(place)]
    )
    subprocess.run(["mount", *words, place], capture_output=True, check=True)


def _image(place: Path) -> Path:
    return place.with_name(f"{place.name}.ext4")


def fill(place: Path) -> Path:
    """Fills the file system; returns the file that does."""
    ballast = place / "ballast"
    with open(ballast, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return ballast


def fail(place: Path) -> None:
    """Makes an ext4 read-only under those who write there, as an error of its disk does."""
    subprocess.run(["sync", "--file-system", place], check=True)
    source = subprocess.run(
        ["findmnt", "--noheadings", "--output=SOURCE", place],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    Path("/sys/fs/ext4", Path(source.strip()).name, "trigger_fs_error").write_text("1")


def mend(place: Path) -> None:
    """Mounts an ext4 again that `fail` made read-only."""
    subprocess.run(["umount", place], check=True)
    subprocess.run(["fsck.ext4", "-y", _image(place)], capture_output=True, check=False)
    _mount(place, "", "ext4")
