"""Whose is this data directory, and which of its files may go?

A directory is taken only if it is free, and gets a record of what was asked for before anything else.
What is unfinished lies in its folder `work`. When all is made, the files of `work` that bear our names
are removed, the folder only if nothing else is in it, and the record at last. Without that record
nothing is removed.
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

_WORK_FILE = re.compile(
    r"(?:request|batches|\d{5,})\.json|\d{5,}\.(?:hashes\.npy|(?:train|validation)\.gz)"
)


def begin(
    directory: epath.Path,
    request: dict[str, Any],
    check_same: Callable[[dict[str, Any]], None],
) -> epath.Path:
    """Takes the directory for a request, or goes on with it; returns the folder for unfinished work.

    Args:
      check_same: raises ConfigError where the request on record is another one.

    Raises:
      ConfigError: the directory holds something else.
    """
    before = _begun(directory)
    if before is not None:
        check_same(before)
    check_free(directory)
    try:
        files.make_folder(directory)
        if not (directory / BEGUN).exists():
            records.write_record(directory / BEGUN, request)
        files.make_folder(directory / WORK)
    except OSError as error:
        raise ConfigError(
            f"{shown(directory)} can't be made ({error.strerror}): choose another --out"
        ) from error
    return directory / WORK


def check_free(directory: epath.Path) -> None:
    """Refuses a directory that holds anything but unfinished data.

    Raises:
      ConfigError: it does.
    """
    for folder in () if files.is_remote(directory) else (directory, *directory.parents):
        if folder.exists() and not folder.is_dir():
            raise ConfigError(
                f"--out={shown(directory)} lies in {shown(folder)}, which is a file: choose another"
            )
    check_free_or_ours(
        directory,
        ours=_begun(directory) is not None,
        option="--out",
        kind="an unfinished `sparsecod data`",
    )


def clear(directory: epath.Path, request: dict[str, Any]) -> None:
    """Removes what was needed to make finished data, as far as it is provably ours; `request` is that of its manifest."""
    before = _begun(directory)
    if before is None or any(
        request.get(name) != value for name, value in before.items()
    ):
        return
    work = directory / WORK
    for file in _listed(work):
        if _WORK_FILE.fullmatch(file.name):
            file.unlink()
    if work.is_dir() and not _listed(work) and not files.is_remote(work):
        work.rmdir()
    (directory / BEGUN).unlink(missing_ok=True)


def _begun(directory: epath.Path) -> dict[str, Any] | None:
    """The request that the directory was begun with; None where nothing says so."""
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


def _listed(folder: epath.Path) -> list[epath.Path]:
    """Its plain files and folders; of a link to a folder nothing, as that is not ours."""
    if not folder.is_dir() or (not files.is_remote(folder) and os.path.islink(folder)):
        return []
    if files.is_remote(folder):
        return sorted(folder.iterdir())
    return sorted(
        folder / name for name in os.listdir(folder)
    )  # epath leaves out names that end with ~
