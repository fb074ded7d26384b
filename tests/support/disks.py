"""Small file systems that can be filled, where this user may mount some."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def mounted(place: Path, size: str) -> Iterator[Path]:
    """A file system of that size while the context lasts; skips the test where mounting is not permitted."""
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], capture_output=True, check=False).returncode:
        pytest.skip("may not mount")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def fill(place: Path, leave: int = 0) -> Path:
    """Fills the file system but for `leave` bytes; returns the file that does."""
    ballast = place / "ballast"
    with open(ballast, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    if leave:
        with open(ballast, "r+b") as file:
            file.truncate(ballast.stat().st_size - leave)
    return ballast


def remount(place: Path, mode: str) -> None:
    """Makes the file system read-only ("ro") or writable ("rw"), under processes that have files open there too."""
    # A forced change, as a disk makes that fails: busy file systems can't be remounted otherwise.
    subprocess.run(["mount", "-o", f"remount,{mode}", place], check=True)
