"""How is a file written whole or not at all, on a disk or in an object store?

Paths that a user names enter through `absolute`. On a disk a file or folder is made beside its
place, under a random name that nobody can have planted a link at, and renamed when its bytes are on
the disk, so that neither a kill nor a power cut leaves half of it. What a killed process left under
such a name is removed by the next one that writes there. In an object store (gs://) an object
appears when all of it has arrived, so nothing is written beside it and renamed; it never grows, so
what is appended to is kept in a `Mirror`; and folders need no making.
"""

import contextlib
import errno
import fcntl
import hashlib
import importlib.util
import io
import json
import math
import os
import posixpath
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any, BinaryIO

import fsspec
import fsspec.config
import numpy as np
from etils import epath

from sparsecod_jax.errors import ConfigError, Fenced
from sparsecod_jax.shell.shown import shown, warn_once

# By itself gcsfs remembers every listing, so a newer attempt or checkpoint of another process would never be seen. This holds for the
# file systems that epath and Orbax open as well.
fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False

CHECKSUM = "checksum"  # the name under which a record carries it
CHECKSUM_KIND = (
    "sha256:"  # begins each checksum, so that one is known even if its name is damaged
)

# Locks of folders on a network's file system hold on one host alone, so unfinished files and folders
# of other hosts are left alone.
UNFINISHED = (
    f".sparsecod-{hashlib.sha256(os.uname().nodename.encode()).hexdigest()[:8]}-"
)


def absolute(path: epath.PathLike) -> epath.Path:
    """The place that a user named.

    Raises:
      ConfigError: it is in a store that can't be reached from here, or no path.
    """
    if not os.fspath(path):
        raise ConfigError("a path is empty: name a place")
    scheme, separator, name = os.fspath(path).partition("://")
    if not separator:
        return _local(os.path.expanduser(os.fspath(path)))
    if scheme != "gs" or not name:
        raise ConfigError(
            f"{path} is neither a local path nor one in a Google Cloud Storage bucket: use a local path or gs://BUCKET/NAME"
        )
    if importlib.util.find_spec("gcsfs") is None:
        raise ConfigError(
            f"{path} can't be reached without gcsfs: pip install 'sparsecod-jax[gcs]'"
        )
    return epath.Path(
        f"gs://{posixpath.normpath(name)}"
    )  # to a store a name with .. in it is another name


def _local(path: str) -> epath.Path:
    if path.startswith("~"):
        raise ConfigError(
            f"{path} begins with no user's home: name another place, or ./{path} for a folder of that name"
        )
    if "\0" in path:
        raise ConfigError(
            f"{path!r} holds a zero, which no name of a file may: name another place"
        )
    return epath.Path(os.path.realpath(path))


def is_remote(path: epath.PathLike) -> bool:
    """Whether `path` is in an object store."""
    return "://" in os.fspath(path)


def check_can_write(path: epath.Path) -> None:
    """Refuses a place where a result file can't be made, before the result is computed; creates nothing.

    Raises:
      ConfigError: its folder is missing or may not be written, or it is a folder itself.
    """
    if is_remote(path):
        return
    folder = path.parent
    with _sentence(path, "written"):
        os.stat(folder)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.lstat(path)  # says whether the name itself is possible
    if path.is_dir():
        raise ConfigError(f"{path} is a folder: name a file")
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder: choose another place than {path}")
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise ConfigError(
            f"{folder} may not be written: choose another place than {path}"
        )


def write(path: epath.Path, content: bytes) -> None:
    """Writes a file whole or not at all; a link at `path` is replaced, and what it names left alone."""
    if is_remote(path):
        _put(path, content, "overwrite")
        return
    _remove_unfinished(path.parent)
    with _unfinished_file(path.parent) as (beside, descriptor):
        _write_all(descriptor, content)
        os.replace(beside, path)
    _sync_folder(path.parent)


def create(path: epath.Path, content: bytes) -> None:
    """Writes a new file; of several processes that try, one succeeds. A kill may leave it empty.

    Raises:
      FileExistsError: there is one already.
    """
    if is_remote(path):
        _put(path, content, "create")
        return
    descriptor = os.open(
        path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666
    )
    try:
        _write_all(descriptor, content)
    except BaseException:
        os.unlink(path)
        raise
    finally:
        os.close(descriptor)
    _sync_folder(path.parent)


def open_log(path: epath.Path) -> BinaryIO:
    """A local file to append to, made where there is none.

    Raises:
      ConfigError: it can't be opened, or is a link, which may lead to somebody else's file.
    """
    with _sentence(path, "written"):
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.fdopen(os.open(path, flags, 0o666), "ab")


def make_folder(path: epath.Path) -> None:
    """Makes a folder, and those above it, to stay after a power cut; does nothing where it is there.

    Raises:
      ConfigError: it can't be made.
    """
    if is_remote(path) or path.is_dir():
        return
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    with _sentence(path, "made"):
        path.mkdir(parents=True, exist_ok=True)
        for folder in made:
            _sync_folder(folder.parent)


def write_array(path: epath.Path, array: np.ndarray) -> None:
    """Writes an .npy file whole or not at all, and the folder for it."""
    content = io.BytesIO()
    np.save(content, array)
    make_folder(path.parent)
    write(path, content.getvalue())


def write_json(path: epath.Path, value: Any) -> None:
    """Writes a JSON file whole or not at all."""
    write(path, json.dumps(value, indent=1).encode())


def finite(value: Any) -> Any:
    """Nested JSON values with null for each number that is not finite, for which JSON has no word."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def is_plain(path: epath.Path) -> bool:
    """Whether it is a file, or a link to one; for epath everything that is no folder is a file."""
    return path.is_file() if is_remote(path) else os.path.isfile(path)


def check_plain(path: epath.Path) -> None:
    """Refuses what is no file: reading a pipe or a device may never end.

    Raises:
      ConfigError: it is none, or the link leads nowhere.
    """
    if is_plain(path):
        return
    try:
        path.stat() if is_remote(path) else os.stat(path)
    except OSError as error:
        is_link = not is_remote(path) and os.path.islink(path)
        what = (
            "is a link that leads nowhere"
            if is_link
            else f"can't be read ({error.strerror})"
        )
        raise ConfigError(f"{shown(path)} {what}: mend or remove it") from error
    raise ConfigError(
        f"{shown(path)} is not a plain file: put one in its place, such as a copy of what it gives"
    )


def read_json(path: epath.Path) -> Any:
    """Reads a JSON file that this package wrote.

    Raises:
      ConfigError: it is damaged, or no plain file.
      FileNotFoundError: there is none.
    """
    if path.exists():
        check_plain(path)
    try:
        return json.loads(path.read_bytes())
    except (
        ValueError,
        RecursionError,
    ) as error:  # no JSON, no UTF-8, or brackets without end
        raise ConfigError(
            f"{shown(path)} is not JSON ({shown(error)}): restore it from a copy, or start in another --workdir"
        ) from error


def write_record(path: epath.Path, values: dict[str, Any]) -> None:
    """Writes a JSON object with a checksum over its content, whole or not at all."""
    write_json(path, {**values, CHECKSUM: _checksum(values)})


def read_record(path: epath.Path) -> dict[str, Any]:
    """Reads what `write_record` wrote, without the checksum. Earlier versions wrote none, so a record without one is taken as it is.

    Raises:
      ConfigError: it is damaged, or was changed after it was written.
    """
    values = read_json(path)
    if not isinstance(values, dict):
        raise ConfigError(
            f"{shown(path)} does not hold an object: restore it from a copy"
        )
    checksum = values.pop(CHECKSUM, None)
    misnamed = any(
        isinstance(value, str) and value.startswith(CHECKSUM_KIND)
        for value in values.values()
    )
    if misnamed or (checksum is not None and checksum != _checksum(values)):
        raise ConfigError(
            f"{shown(path)} was changed after it was written: restore it from a copy"
        )
    return values


def warn_if_unchecked(path: epath.Path) -> None:
    """One line, where an earlier version wrote this record, to which damage may go unseen."""
    if path.exists() and CHECKSUM not in read_json(path):
        warn_once(
            f"{shown(path.parent)} was made before checksums were recorded: its records are taken as they are"
        )


def _checksum(values: dict[str, Any]) -> str:
    """Of the content as JSON, whatever the order of its names."""
    as_read = json.loads(
        json.dumps(values)
    )  # numbers as names become words, which sort otherwise
    return (
        CHECKSUM_KIND
        + hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()[:16]
    )


def digest(path: epath.Path) -> str:
    """A short hash of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def read_range(path: epath.PathLike, start: int, stop: int) -> bytes:
    """Bytes start..stop-1 of an object, in one request."""
    return _store().cat_file(os.fspath(path), start, stop)  # pyright: ignore[reportReturnType]


def move(folder: epath.Path, target: epath.Path) -> None:
    """Moves a folder to a place that is free; in an object store the originals go when all copies are made."""
    if is_remote(folder):
        _store().copy(os.fspath(folder), os.fspath(target), recursive=True)
        _store().rm(os.fspath(folder), recursive=True)
    else:
        make_folder(target.parent)
        folder.rename(target)
        _sync_folder(target.parent)
        _sync_folder(folder.parent)


def sync_tree(folder: epath.Path) -> None:
    """Returns when a local folder is on the disk with all that it holds and with its own name."""
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            _sync(os.path.join(place, name))
        _sync(place)
    _sync_folder(folder.parent)


def free_name(path: epath.Path) -> epath.Path:
    """`path` with the first number behind it that is not taken."""
    taken = 0
    while (candidate := path.with_name(f"{path.name}-{taken}")).exists():
        taken += 1
    return candidate


@contextlib.contextmanager
def new_folder(target: epath.Path) -> Iterator[epath.Path]:
    """A local folder to be filled, which becomes `target` when the context ends well, and else is gone.

    In an object store its files appear one after the other.

    Raises:
      ConfigError: `target` can't be made.
      Fenced: another process has made `target` meanwhile, which is left as it is.
    """
    if is_remote(target):
        with contextlib.closing(Mirror(target)) as mirror:
            yield mirror.path
            mirror.upload()
        return
    make_folder(target.parent)
    _remove_unfinished(target.parent)
    with _unfinished_folder(target) as beside:
        yield beside
        sync_tree(beside)
        try:
            os.rename(beside, target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            raise Fenced(
                f"{target} was made by another process meanwhile: it was left as it is"
            ) from error
    _sync_folder(target.parent)


@contextlib.contextmanager
def _unfinished_file(folder: epath.Path) -> Iterator[tuple[epath.Path, int]]:
    """A new file and its descriptor, locked while the context lasts; then gone, unless renamed."""
    while True:
        path = folder / f"{UNFINISHED}{secrets.token_hex(8)}"
        descriptor = os.open(
            path,
            os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
            0o666,
        )
        try:
            if not _claimed(path, descriptor):
                continue
            try:
                yield path, descriptor
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
            return
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _unfinished_folder(target: epath.Path) -> Iterator[epath.Path]:
    """A new folder beside `target`, locked while the context lasts; then gone, unless renamed."""
    while True:
        path = target.with_name(f"{UNFINISHED}{secrets.token_hex(8)}")
        with _sentence(target, "made"):
            os.mkdir(path)
        descriptor = os.open(
            path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        )
        try:
            if not _claimed(path, descriptor):
                continue
            try:
                yield path
            finally:
                shutil.rmtree(path, ignore_errors=True)
            return
        finally:
            os.close(descriptor)


def _claimed(path: epath.Path, descriptor: int) -> bool:
    """Locks what was just made. False if another process took it for a dead one's, and removed it."""
    with contextlib.suppress(OSError):  # where there are no locks nobody removes it
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    return path.exists()


def _remove_unfinished(folder: epath.Path) -> None:
    """Removes what killed processes of this host left in `folder`; live ones hold a lock on theirs."""
    with os.scandir(folder) as entries:
        left = [entry for entry in entries if entry.name.startswith(UNFINISHED)]
    for entry in left:
        with contextlib.suppress(OSError):  # held, or gone, or not ours to remove
            is_folder = entry.is_dir(follow_symlinks=False)
            mode = (
                os.O_RDONLY if is_folder else os.O_RDWR
            )  # some file systems lock only what may be written
            descriptor = os.open(
                entry.path, mode | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            )
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(entry.path) if is_folder else os.unlink(entry.path)
            finally:
                os.close(descriptor)


def _write_all(descriptor: int, content: bytes) -> None:
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)


def _sync_folder(folder: epath.Path) -> None:
    """Has the names in `folder` survive a power cut."""
    _sync(os.fspath(folder))


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system without an fsync for folders
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _sentence(path: epath.Path, done: str) -> Iterator[None]:
    """Says what is wrong with a place that the user chose."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{path} can't be {done} ({error.strerror}): choose another place"
        ) from error


class Mirror:
    """A local folder for files that grow: `target` itself where it is local, else one beside it that `upload` copies there."""

    def __init__(self, target: epath.Path):
        self._target = target
        self._temporary = (
            tempfile.TemporaryDirectory(prefix="sparsecod-")
            if is_remote(target)
            else None
        )
        self.path = epath.Path(self._temporary.name) if self._temporary else target

    def upload(self) -> None:
        """Copies each file whole; files of `target` that are not in the mirror stay."""
        if self._temporary:
            _store().put(f"{self.path}/", f"{self._target}/", recursive=True)

    def close(self) -> None:
        """Gives up the mirror, without another upload."""
        if self._temporary:
            self._temporary.cleanup()


def _store() -> fsspec.AbstractFileSystem:
    return fsspec.filesystem("gs")


def _put(path: epath.Path, content: bytes, mode: str) -> None:
    try:
        _store().pipe_file(os.fspath(path), content, mode=mode)
    except (
        FileNotFoundError
    ) as error:  # all that an object needs to exist is its bucket
        raise ConfigError(
            f"{path} can't be written, there is no such bucket: make it first, or correct its name"
        ) from error
