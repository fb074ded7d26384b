"""Whose is this folder? A command writes into a folder only if it is free, or if this package provably made it.

Several processes take turns by a lock on the folder, which dies with its holder.
"""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator

from etils import epath

from sparsecod_jax.errors import ConfigError, Fenced
from sparsecod_jax.storage.files import is_remote
from sparsecod_jax.storage.unfinished import UNFINISHED

# What a file system without locks says; it is treated as an object store.
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


def check_free_or_ours(
    folder: epath.Path, *, ours: bool, option: str, kind: str
) -> None:
    """Refuses a place that holds somebody else's files, before anything is written.

    Args:
      folder: the place that a command is about to fill.
      ours: whether a record in it proves that this package made it.
      option: by which the user named it, such as --workdir.
      kind: what the command makes, such as "a run".

    Raises:
      ConfigError: `folder` is a file, or it is neither absent, nor empty, nor ours.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(
            f"{folder} is a file: choose another {option}, a folder that is new or empty"
        )
    if not ours and names_in(folder):
        raise ConfigError(
            f"{folder} holds files but not {kind}: choose another {option}, a folder that is new or empty"
        )


def names_in(folder: epath.Path) -> set[str]:
    """What lies in a folder, which may be absent, but for what a killed process left half written."""
    if is_remote(folder):
        names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    else:
        names = (
            set(os.listdir(folder)) if folder.is_dir() else set()
        )  # epath leaves out names that end with ~
    return {name for name in names if not name.startswith(UNFINISHED)}


@contextlib.contextmanager
def locked(path: epath.Path) -> Iterator[None]:
    """Holds the lock on a local folder, if it is there; object stores have none, nor have some file systems.

    Raises:
      Fenced: another process holds it.
    """
    if is_remote(path) or not path.is_dir():
        yield
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if not _lock(descriptor, fcntl.LOCK_EX):
            raise Fenced(
                f"another process is at work in {path}: wait for it, or stop it first"
            )
        yield
    finally:
        os.close(descriptor)


def is_locked(path: epath.Path) -> bool:
    """Whether another process holds the lock on a folder, as far as that can be known."""
    if is_remote(path):
        return False
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        return not _lock(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, kind: int) -> bool:
    """Takes the lock; False where another process holds it."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return True
