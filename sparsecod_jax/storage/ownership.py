"""Whose is this folder, and who works in it?

Ownership of folders: a command writes into a folder only if that is free, or if this
package provably made it. Several processes take turns by a lock on the folder, which
dies with its holder.
"""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from typing import Any

from etils import epath

from sparsecod_jax.errors import ConfigError, Fenced
from sparsecod_jax.storage.files import is_remote
from sparsecod_jax.storage.unfinished import UNFINISHED

# Errors of a file system without locks; it is treated like an object store.
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)

LARGEST_PID = 2**22  # beyond which Linux gives no process a number


def check_free_or_ours(
    folder: epath.Path, *, ours: bool, option: str, kind: str
) -> None:
    """Refuses a folder that holds somebody else's files, before anything is written.

    Args:
      folder: what a command is about to fill.
      ours: whether a record in it proves that this package made it.
      option: by which the user named it, such as --workdir.
      kind: what the command makes, such as "a run".

    Raises:
      ConfigError: `folder` is a file, or it is neither absent, nor empty, nor ours.
    """
    advice = f"choose another {option}, a folder that is new or empty"
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file: {advice}")
    if not ours and names_in(folder):
        raise ConfigError(f"{folder} holds files but not {kind}: {advice}")


def names_in(folder: epath.Path) -> set[str]:
    """What lies in a folder, without what a killed process left half-written.

    Nothing if there is no such folder.
    """
    names: set[str] = set()
    if is_remote(folder):
        if folder.exists():
            names = {path.name for path in folder.iterdir()}
    elif folder.is_dir():
        names = set(os.listdir(folder))  # epath leaves out names that end with ~
    return {name for name in names if not name.startswith(UNFINISHED)}


@contextlib.contextmanager
def locked(path: epath.Path) -> Iterator[None]:
    """Holds the lock on a local folder, if the folder exists.

    Object stores have no locks, and neither have some file systems.

    Raises:
      Fenced: another process holds it.
    """
    if is_remote(path) or not path.is_dir():
        yield
        return
    # The lock belongs to the open descriptor: however this process ends, the system
    # closes the descriptor and thereby frees the lock.
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
    """Whether another process holds the lock on a folder, as far as can be known."""
    if is_remote(path):
        return False
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    # A shared lock is refused while somebody holds the exclusive one, and two processes
    # that look at the same time do not take each other for the holder.
    try:
        return not _lock(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, kind: int) -> bool:
    """Takes the lock without waiting; False where another process holds it."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return True


def this_process() -> dict[str, Any]:
    """What a record holds about the process that wrote it; `is_dead` reads it."""
    return {"host": os.uname().nodename, "pid": os.getpid()}


def is_dead(record: dict[str, Any], path: epath.Path) -> bool:
    """Whether the process that wrote a record in `path` is gone for certain."""
    if record.get("host") != os.uname().nodename:
        return False  # nobody knows about processes of other hosts
    number = record.get("pid")
    if type(number) is not int or not 0 < number < LARGEST_PID:
        return False
    try:
        os.kill(number, 0)  # sends nothing, but fails where there is no such process
    except ProcessLookupError:
        # Or it lives in another container of this host; then it holds the lock.
        return not is_locked(path)
    except PermissionError:
        return False
    return False
