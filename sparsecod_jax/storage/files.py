"""How is a file written whole or not at all, on a disk or in an object store?

Files: paths that a user names enter through `absolute`. On a disk a file or folder is
made beside its target (see `unfinished`) and renamed when its bytes are on the disk, so
that neither a kill nor a power cut leaves half of it. In an object store (gs://) an
object appears when all of it has arrived, so nothing is renamed there; an object never
grows, so what is appended to is kept in a `Mirror`; and folders need no making.
"""

import contextlib
import errno
import hashlib
import importlib.util
import io
import os
import posixpath
import tempfile
from collections.abc import Iterator
from typing import BinaryIO

import fsspec
import fsspec.config
import numpy as np
from etils import epath

from sparsecod_jax.errors import ConfigError, Fenced
from sparsecod_jax.shell.shown import shown
from sparsecod_jax.storage.unfinished import (
    remove_unfinished,
    unfinished_file,
    unfinished_folder,
)

# By itself gcsfs remembers every listing, so that a newer attempt or checkpoint of
# another process would never be noticed. This setting also holds for the file systems
# that epath and Orbax open.
fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False


# Paths


def absolute(path: epath.PathLike) -> epath.Path:
    """The absolute path of what a user named.

    Raises:
      ConfigError: it is in a store that can't be reached from here, or not a path.
    """
    if not os.fspath(path):
        raise ConfigError("a path is empty: name a place")
    scheme, separator, name = os.fspath(path).partition("://")
    if not separator:
        return _absolute_local(os.path.expanduser(os.fspath(path)))
    if scheme != "gs" or not name:
        raise ConfigError(
            f"{path} is neither a local path nor one in a Google Cloud Storage bucket: "
            "use a local path or gs://BUCKET/NAME"
        )
    if importlib.util.find_spec("gcsfs") is None:
        raise ConfigError(
            f"{path} can't be reached without gcsfs: pip install 'sparsecod-jax[gcs]'"
        )
    # To a store a/../b is not b but a name of its own.
    return epath.Path(f"gs://{posixpath.normpath(name)}")


def _absolute_local(path: str) -> epath.Path:
    if path.startswith("~"):
        raise ConfigError(
            f"{path} begins with no user's home: "
            f"name another place, or ./{path} for a folder of that name"
        )
    if "\0" in path:
        raise ConfigError(
            f"{path!r} holds a zero byte, which no file name may: name another place"
        )
    return epath.Path(os.path.realpath(path))


def is_remote(path: epath.PathLike) -> bool:
    """Whether `path` is in an object store."""
    return "://" in os.fspath(path)


def is_plain(path: epath.Path) -> bool:
    """Whether it is a plain file, or a link to one; neither a pipe nor a device."""
    if is_remote(path):
        return path.is_file()
    return os.path.isfile(path)  # epath counts everything but folders


def check_plain(path: epath.Path) -> None:
    """Refuses what is not a plain file: reading a pipe or a device may never end.

    Raises:
      ConfigError: it is none, or a link that leads nowhere.
    """
    if is_plain(path):
        return
    try:
        path.stat() if is_remote(path) else os.stat(path)
    except OSError as error:
        problem = f"can't be read ({error.strerror})"
        if not is_remote(path) and os.path.islink(path):
            problem = "is a link that leads nowhere"
        raise ConfigError(f"{shown(path)} {problem}: mend or remove it") from error
    raise ConfigError(
        f"{shown(path)} is not a plain file: "
        "put one in its place, such as a copy of what it gives"
    )


def check_can_write(path: epath.Path) -> None:
    """Refuses a path where a result file can't be made, before the result is computed.

    Creates nothing.

    Raises:
      ConfigError: its folder is missing or may not be written, or it is a folder itself.
    """
    if is_remote(path):
        return
    folder = path.parent
    with _as_config_error(path, "written"):
        os.stat(folder)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.lstat(path)  # fails otherwise if the name itself is impossible
    if path.is_dir():
        raise ConfigError(f"{path} is a folder: name a file")
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder: choose another place than {path}")
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise ConfigError(
            f"{folder} may not be written: choose another place than {path}"
        )


def free_name(path: epath.Path) -> epath.Path:
    """`path` with the first number appended whose name is free."""
    number = 0
    while (candidate := path.with_name(f"{path.name}-{number}")).exists():
        number += 1
    return candidate


# Files


def write(path: epath.Path, content: bytes) -> None:
    """Writes a file whole or not at all.

    A link at `path` is replaced, and what it leads to is left alone.
    """
    if is_remote(path):
        _put(path, content, "overwrite")
        return
    remove_unfinished(path.parent)
    # First the bytes reach the disk, then the name, then this function returns.
    with unfinished_file(path.parent) as (beside, descriptor):
        _write_and_sync(descriptor, content)
        os.replace(beside, path)
    _sync(path.parent)


def create(path: epath.Path, content: bytes) -> None:
    """Writes a new file; of several processes that try, one succeeds.

    A kill may leave it empty.

    Raises:
      FileExistsError: there is one already.
    """
    if is_remote(path):
        _put(path, content, "create")
        return
    # Written in place: a rename could not tell whether the name was free.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o666)
    try:
        _write_and_sync(descriptor, content)
    except BaseException:
        os.unlink(path)
        raise
    finally:
        os.close(descriptor)
    _sync(path.parent)


def write_array(path: epath.Path, array: np.ndarray) -> None:
    """Writes an .npy file whole or not at all, and makes the folder for it."""
    content = io.BytesIO()
    np.save(content, array)
    make_folder(path.parent)
    write(path, content.getvalue())


def open_log(path: epath.Path) -> BinaryIO:
    """Opens a local file to append to; it is made where there is none.

    Raises:
      ConfigError: it can't be opened, or is a link, which may lead to another's file.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    with _as_config_error(path, "written"):
        return os.fdopen(os.open(path, flags, 0o666), "ab")


def read_range(path: epath.PathLike, start: int, stop: int) -> bytes:
    """Bytes start..stop-1 of an object, in one request."""
    return _store().cat_file(os.fspath(path), start, stop)  # pyright: ignore[reportReturnType]


def digest(path: epath.Path) -> str:
    """A short hash of a file's content, 16 hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


# Folders


def make_folder(path: epath.Path) -> None:
    """Makes a folder, and those above it, such that they survive a power cut.

    Raises:
      ConfigError: it can't be made.
    """
    if is_remote(path) or path.is_dir():
        return
    # The name of each new folder is on the disk once its parent is synced.
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    with _as_config_error(path, "made"):
        path.mkdir(parents=True, exist_ok=True)
        for folder in made:
            _sync(folder.parent)


@contextlib.contextmanager
def new_folder(target: epath.Path) -> Iterator[epath.Path]:
    """A local folder to be filled, which becomes `target` if the context ends well.

    Otherwise it is gone. In an object store its files appear one after the other.

    Raises:
      ConfigError: `target` can't be made.
      Fenced: another process has made `target` meanwhile; it is left as it is.
    """
    if is_remote(target):
        with contextlib.closing(Mirror(target)) as mirror:
            yield mirror.path
            mirror.upload()
        return
    make_folder(target.parent)
    remove_unfinished(target.parent)
    with contextlib.ExitStack() as stack:
        with _as_config_error(target, "made"):
            beside = stack.enter_context(unfinished_folder(target.parent))
        yield beside
        # The content reaches the disk first: a power cut must not leave the name alone.
        sync_tree(beside)
        _rename_to_new(beside, target)
    _sync(target.parent)


def _rename_to_new(folder: epath.Path, target: epath.Path) -> None:
    try:
        os.rename(folder, target)  # replaces nothing but an empty folder
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise Fenced(
            f"{target} was made by another process meanwhile: it was left as it is"
        ) from error


def move(folder: epath.Path, target: epath.Path) -> None:
    """Moves a folder to a free path.

    In an object store the originals are removed when all copies are made.
    """
    if is_remote(folder):
        _store().copy(os.fspath(folder), os.fspath(target), recursive=True)
        _store().rm(os.fspath(folder), recursive=True)
        return
    make_folder(target.parent)
    folder.rename(target)
    _sync(target.parent)
    _sync(folder.parent)


class Mirror:
    """A local folder for files that grow.

    It is `target` itself where that is local, else a temporary folder, which `upload`
    copies to `target`.
    """

    def __init__(self, target: epath.Path):
        self._target = target
        self.path = target
        self._temporary: tempfile.TemporaryDirectory | None = None
        if is_remote(target):
            self._temporary = tempfile.TemporaryDirectory(prefix="sparsecod-")
            self.path = epath.Path(self._temporary.name)

    def upload(self) -> None:
        """Copies each file whole; other files in `target` stay."""
        if self._temporary:
            _store().put(f"{self.path}/", f"{self._target}/", recursive=True)

    def close(self) -> None:
        """Removes the temporary folder, without another upload."""
        if self._temporary:
            self._temporary.cleanup()


# Disks and stores


def sync_tree(folder: epath.Path) -> None:
    """Returns when a local folder, its whole content and its own name are on the disk."""
    # Bottom up: content is on the disk before the name that leads to it.
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            _sync(os.path.join(parent, name))
        _sync(parent)
    _sync(folder.parent)


def _write_and_sync(descriptor: int, content: bytes) -> None:
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)


def _sync(path: epath.PathLike) -> None:
    """Forces a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system without an fsync for folders
            raise
    finally:
        os.close(descriptor)


def _store() -> fsspec.AbstractFileSystem:
    return fsspec.filesystem("gs")


def _put(path: epath.Path, content: bytes, mode: str) -> None:
    try:
        _store().pipe_file(os.fspath(path), content, mode=mode)
    except FileNotFoundError as error:  # an object needs nothing but its bucket
        raise ConfigError(
            f"{path} can't be written, there is no such bucket: "
            "make it first, or correct its name"
        ) from error


@contextlib.contextmanager
def _as_config_error(path: epath.Path, action: str) -> Iterator[None]:
    """Raises ConfigError for a path that the user chose and the system refuses."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{path} can't be {action} ({error.strerror}): choose another place"
        ) from error
