"""How is a file written whole or not at all, on a disk or in an object store?

Paths that a user names enter through `absolute`. In an object store (gs://) an object appears when all of it has arrived, so nothing is
written beside it and renamed; it never grows, so what is appended to is kept in a `Mirror`; and folders need no making.
"""

import contextlib
import hashlib
import importlib.util
import io
import json
import math
import os
import posixpath
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import fsspec
import fsspec.config
import numpy as np
from etils import epath

from sparsecod_jax.errors import ConfigError

# By itself gcsfs remembers every listing, so a newer attempt or checkpoint of another process would never be seen. This holds for the
# file systems that epath and Orbax open as well.
fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False

CHECKSUM = "checksum"  # the name under which a record carries it


def absolute(path: epath.PathLike) -> epath.Path:
    """The place that a user named.

    Raises:
      ConfigError: it is in a store that can't be reached from here.
    """
    if not os.fspath(path):
        raise ConfigError("a path is empty: name a place")
    scheme, separator, name = os.fspath(path).partition("://")
    if not separator:
        return epath.Path(path).resolve()
    if scheme != "gs" or not name:
        raise ConfigError(f"{path} is neither a local path nor one in a Google Cloud Storage bucket: use a local path or gs://BUCKET/NAME")
    if importlib.util.find_spec("gcsfs") is None:
        raise ConfigError(f"{path} can't be reached without gcsfs: pip install 'sparsecod-jax[gcs]'")
    return epath.Path(f"gs://{posixpath.normpath(name)}")  # to a store a name with .. in it is another name


def is_remote(path: epath.PathLike) -> bool:
    """Whether `path` is in an object store."""
    return "://" in os.fspath(path)


def write(path: epath.Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    if is_remote(path):
        _put(path, content, "overwrite")
    else:
        partial = path.with_name(path.name + ".partial")
        partial.write_bytes(content)
        partial.replace(path)


def create(path: epath.Path, content: bytes) -> None:
    """Writes a new file; of several processes that try, one succeeds.

    Raises:
      FileExistsError: there is one already.
    """
    if is_remote(path):
        _put(path, content, "create")
    else:
        with open(path, "xb") as file:
            file.write(content)


def write_array(path: epath.Path, array: np.ndarray) -> None:
    """Writes an .npy file whole or not at all, and the folder for it."""
    content = io.BytesIO()
    np.save(content, array)
    path.parent.mkdir(parents=True, exist_ok=True)
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


def read_json(path: epath.Path) -> Any:
    """Reads a JSON file that this package wrote.

    Raises:
      ConfigError: it is damaged.
    """
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is not JSON ({error}): restore it from a copy, or start in another --workdir") from error


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
        raise ConfigError(f"{path} does not hold an object: restore it from a copy")
    checksum = values.pop(CHECKSUM, None)
    if checksum is not None and checksum != _checksum(values):
        raise ConfigError(f"{path} was changed after it was written: restore it from a copy")
    return values


def _checksum(values: dict[str, Any]) -> str:
    """Of the content as JSON, whatever the order of its names."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def read_range(path: epath.PathLike, start: int, stop: int) -> bytes:
    """Bytes start..stop-1 of an object, in one request."""
    return _store().cat_file(os.fspath(path), start, stop)  # pyright: ignore[reportReturnType]


def move(folder: epath.Path, target: epath.Path) -> None:
    """Moves a folder to a place that is free; in an object store the originals go when all copies are made."""
    if is_remote(folder):
        _store().copy(os.fspath(folder), os.fspath(target), recursive=True)
        _store().rm(os.fspath(folder), recursive=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(target)


@contextlib.contextmanager
def new_folder(target: epath.Path) -> Iterator[epath.Path]:
    """A local folder to be filled, which becomes `target` when the context ends well, and else is gone.

    In an object store its files appear one after the other.

    Raises:
      ConfigError: `target` can't be made.
    """
    if is_remote(target):
        with contextlib.closing(Mirror(target)) as mirror:
            yield mirror.path
            mirror.upload()
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = epath.Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise ConfigError(f"{target} can't be made ({error.strerror}): choose another place") from error
    try:
        os.chmod(beside, 0o777 & ~_umask())
        yield beside
        beside.rename(target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _umask() -> int:
    os.umask(mask := os.umask(0))
    return mask


class Mirror:
    """A local folder for files that grow: `target` itself where it is local, else one beside it that `upload` copies there."""

    def __init__(self, target: epath.Path):
        self._target = target
        self._temporary = tempfile.TemporaryDirectory(prefix="sparsecod-") if is_remote(target) else None
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
    except FileNotFoundError as error:  # all that an object needs to exist is its bucket
        raise ConfigError(f"{path} can't be written, there is no such bucket: make it first, or correct its name") from error
