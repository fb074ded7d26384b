"""How is a half-written file or folder kept apart from a whole one?

Unfinished files and folders: each is made beside its target, under a random name at
which nobody can have planted a link, and renamed when it is whole. Whoever writes one
holds a lock on it, and a lock dies with its holder: what has no lock was left behind by
a killed process, and the next process that writes in the same folder removes it.
"""

import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator

from etils import epath

# Locks on a network file system may hold on one host alone. The host is therefore part
# of the name, and each host leaves the unfinished files of the others alone.
_HOST = hashlib.sha256(os.uname().nodename.encode()).hexdigest()[:8]
UNFINISHED = f".sparsecod-{_HOST}-"


@contextlib.contextmanager
def unfinished_file(folder: epath.Path) -> Iterator[tuple[epath.Path, int]]:
    """A new file in `folder` and its descriptor.

    It is locked while the context lasts; then it is gone, unless it was renamed.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        path = folder / _random_name()
        descriptor = os.open(path, flags, 0o666)
        try:
            if not _lock_new(path, descriptor):
                continue
            try:
                yield path, descriptor
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
            return
        finally:
            os.close(descriptor)  # and with it the lock


@contextlib.contextmanager
def unfinished_folder(parent: epath.Path) -> Iterator[epath.Path]:
    """A new folder in `parent`.

    It is locked while the context lasts; then it is gone, unless it was renamed.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        path = parent / _random_name()
        os.mkdir(path)
        descriptor = os.open(path, flags)
        try:
            if not _lock_new(path, descriptor):
                continue
            try:
                yield path
            finally:
                shutil.rmtree(path, ignore_errors=True)
            return
        finally:
            os.close(descriptor)  # and with it the lock


def remove_unfinished(folder: epath.Path) -> None:
    """Removes what killed processes of this host left in `folder`."""
    with os.scandir(folder) as entries:
        leftovers = [entry for entry in entries if entry.name.startswith(UNFINISHED)]
    for entry in leftovers:
        # An error means that a live process holds the lock, that another process was
        # faster, or that the entry is not ours to remove.
        with contextlib.suppress(OSError):
            _remove_if_unlocked(entry)


def _remove_if_unlocked(entry: os.DirEntry) -> None:
    is_folder = entry.is_dir(follow_symlinks=False)
    # Some file systems lock a file only if it is open for writing.
    mode = os.O_RDONLY if is_folder else os.O_RDWR
    # O_NOFOLLOW: a planted link is left alone. O_NONBLOCK: opening a pipe must not wait.
    flags = mode | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(entry.path, flags)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Removed while the lock is held, so that its maker can see that it is gone.
        if is_folder:
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)
    finally:
        os.close(descriptor)


def _lock_new(path: epath.Path, descriptor: int) -> bool:
    """Locks what was just made; False if it is gone.

    Between making and locking, another process may take it for a leftover and remove it.
    """
    with contextlib.suppress(OSError):  # where there are no locks nobody removes it
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    return path.exists()


def _random_name() -> str:
    return f"{UNFINISHED}{secrets.token_hex(8)}"
