"""Whose is this data directory, and which of its files may be removed?

Ownership of a data directory: a directory is used only if it is free, and first gets a
record of the request. Unfinished work lies in its folder `work`. When all is made, the
files of `work` that bear our names are removed, then the folder if nothing else is in it,
and the record last. Without that record nothing is removed.
"""

import os
import re
from collections.abc import Callable
from typing import Any

from etils import epath

from sparsecod_jax.errors import ConfigError
from sparsecod_jax.shell.shown import shown
from sparsecod_jax.storage import files, records
from sparsecod_jax.storage.ownership import check_free_or_ours

BEGUN = "begun.json"  # the request of unfinished data
WORK = "work"
OLD_BEGUN = "request.json"  # in WORK, of earlier versions

# The names of what `selection` writes, and earlier versions wrote.
_WORK_FILE = re.compile(
    r"(?:request|batches|\d{5,})\.json|\d{5,}\.(?:hashes\.npy|(?:train|validation)\.gz)"
)


def begin(
    directory: epath.Path,
    request: dict[str, Any],
    check_same: Callable[[dict[str, Any]], None],
) -> epath.Path:
    """Occupies the directory for a request, or resumes it.

    Args:
      directory: may not exist yet.
      request: to record.
      check_same: raises ConfigError if the request on record is a different one.

    Returns:
      The folder for unfinished work.

    Raises:
      ConfigError: the directory holds something else.
    """
    recorded = _recorded_request(directory)
    if recorded is not None:
        check_same(recorded)
    check_free(directory)
    work = directory / WORK
    try:
        files.make_folder(directory)
        if not (directory / BEGUN).exists():
            records.write_record(directory / BEGUN, request)
        files.make_folder(work)
    except OSError as error:
        raise ConfigError(
            f"{shown(directory)} can't be made ({error.strerror}): choose another --out"
        ) from error
    return work


def check_free(directory: epath.Path) -> None:
    """Refuses a directory that holds anything but unfinished data.

    Raises:
      ConfigError: it does.
    """
    if not files.is_remote(directory):
        for folder in (directory, *directory.parents):
            if folder.exists() and not folder.is_dir():
                raise ConfigError(
                    f"--out={shown(directory)} lies in {shown(folder)},"
                    " which is a file: choose another"
                )
    check_free_or_ours(
        directory,
        ours=_recorded_request(directory) is not None,
        option="--out",
        kind="an unfinished `sparsecod data`",
    )


def clear(directory: epath.Path, request: dict[str, Any]) -> None:
    """Removes what was needed to make finished data, as far as it is provably ours.

    Args:
      request: that of the manifest.
    """
    recorded = _recorded_request(directory)
    if recorded is None:
        return
    # Earlier versions recorded fewer options.
    if any(request.get(name) != value for name, value in recorded.items()):
        return
    work = directory / WORK
    for file in _entries(work):
        if _WORK_FILE.fullmatch(file.name):
            file.unlink()
    # An object store has no folders.
    if work.is_dir() and not _entries(work) and not files.is_remote(work):
        work.rmdir()
    (directory / BEGUN).unlink(missing_ok=True)


def _recorded_request(directory: epath.Path) -> dict[str, Any] | None:
    """The request with which the directory was begun; None without a record."""
    for record in (directory / BEGUN, directory / WORK / OLD_BEGUN):
        if not files.is_plain(record):
            continue
        try:
            values = records.read_record(record)
        except (ConfigError, ValueError, OSError):
            continue  # a record that can't be read proves nothing
        if {"source", "tokenizer", "split_seed"} <= values.keys():
            return values
    return None


def _entries(folder: epath.Path) -> list[epath.Path]:
    """What is in a folder; nothing for a link to a folder, as that is not ours."""
    if not folder.is_dir():
        return []
    if files.is_remote(folder):
        return sorted(folder.iterdir())
    if os.path.islink(folder):
        return []
    # epath leaves out names that end with ~.
    return sorted(folder / name for name in os.listdir(folder))
