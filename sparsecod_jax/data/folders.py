"""Which files of a folder are documents?

Selection of files: text files and files of rows, in the order of their names, links
followed. Left out, and reported, are hidden files, files that describe a data set rather
than belong to it, other splits than the requested one, folders that were visited before
under another name, and files that can't be read. The splits of a data set are given by
the README of a snapshot, or else by the names of its files.
"""

import fnmatch
import itertools
import os
import re
from collections.abc import Iterator
from typing import Any

from etils import epath

from sparsecod_jax.data import readers
from sparsecod_jax.data.extras import optional
from sparsecod_jax.data.left_out import LeftOut
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.shell.shown import shown
from sparsecod_jax.storage import files

TRAIN = "train"
# The words that mean a split in the names of files and folders.
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
# Names of files that people write about the data.
ABOUT = re.compile(
    r"(readme|licen[cs]e|copying|notice|citation|changelog|\.?gitattributes)\b.*",
    re.IGNORECASE,
)
# Files that the libraries of Hugging Face write beside the data.
SETTINGS = (
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
    "config.json",
    "metadata.json",
)
FRONT_MATTER = 2**20  # bytes of a README that are read
PATTERNS = 10_000  # of files that it may give


def documents_in(
    root: epath.Path, split: str | None, left_out: LeftOut
) -> list[epath.Path]:
    """The files of `root` that hold documents of a split, in order.

    Args:
      root: the folder.
      split: None is the training split, or everything where there are no splits.
      left_out: records every file that is not read.

    Raises:
      ConfigError: there is no such file, or a link leads nowhere.
    """
    readable = []
    for path in _files(root, {_real(root)}, left_out):
        if readers.kind(path.name) is None:
            left_out.add("files of a kind that can't be read", _name(path, root))
        else:
            readable.append(path)
    kept = _without_descriptions(root, readable, left_out)
    if not kept:
        raise _nothing_to_read(root)
    return _of_split(root, kept, split, left_out)


def _without_descriptions(
    root: epath.Path, paths: list[epath.Path], left_out: LeftOut
) -> list[epath.Path]:
    """The files that are not about the data.

    Beside rows, a README in any folder is about them; among texts, only one at the top.
    """
    any_rows = any(_has_rows(path) and path.name not in SETTINGS for path in paths)
    kept = []
    for path in paths:
        is_called_so = ABOUT.fullmatch(path.name) and not _has_rows(path)
        is_about = is_called_so and (any_rows or path.parent == root)
        if path.name in SETTINGS or is_about:
            left_out.add("files about the data", _name(path, root))
        else:
            kept.append(path)
    return kept


def _has_rows(path: epath.Path) -> bool:
    """Whether a file is one of rows, each of which has a document."""
    return readers.kind(path.name) in readers.ROWS


def _nothing_to_read(root: epath.Path) -> ConfigError:
    """The error of a source that holds no file of a known kind."""
    suffixes = [*readers.TEXT, *readers.ROWS]
    suffixes.remove(readers.PARQUET)
    return ConfigError(
        f"{shown(root)} holds no file that can be read:"
        f" use {', '.join(suffixes)} (also .gz or .zst) or {readers.PARQUET}"
    )


def one_file(path: epath.Path) -> list[epath.Path]:
    """A source that is itself a file.

    Raises:
      ConfigError: it is not a plain file, or of a kind that can't be read.
    """
    files.check_plain(path)
    if readers.kind(path.name) is None:
        raise _nothing_to_read(path)
    return [path]


def _files(
    folder: epath.Path,
    visited: set[str],
    left_out: LeftOut,
    root: epath.Path | None = None,
) -> Iterator[epath.Path]:
    """Plain files below `folder`, in order.

    Args:
      visited: real paths of folders; those that are visited are added.
      root: relative to which files are reported; None is `folder`.
    """
    root = root or folder
    for path in _entries(folder):
        if path.name.startswith(".") or path.name == "__MACOSX":
            left_out.add("hidden files", _name(path, root))
        elif path.is_dir():
            # A link may lead to a folder above it, or to one that is read anyway.
            real = _real(path)
            if real in visited:
                reason = "folders that were seen under another name"
                left_out.add(reason, _name(path, root))
                continue
            visited.add(real)
            yield from _files(path, visited, left_out, root)
        elif path.exists() and not files.is_plain(path):
            # Opening one may wait forever, or never end.
            left_out.add("pipes and devices", _name(path, root))
        else:
            files.check_plain(path)  # raises for a link that leads nowhere
            yield path


def _entries(folder: epath.Path) -> list[epath.Path]:
    """What is in a folder, in the order of names."""
    try:
        return sorted(folder.iterdir(), key=os.fspath)
    except OSError as error:
        raise ConfigError(
            f"{shown(folder)} can't be listed ({error.strerror}):"
            " change who may read it, or remove it"
        ) from error


def _real(folder: epath.Path) -> str:
    if files.is_remote(folder):
        return os.fspath(folder)
    return os.path.realpath(folder)


def _name(path: epath.Path, root: epath.Path) -> str:
    """The path relative to the source, which is shown to people."""
    return os.fspath(path.relative_to(root))


def _of_split(
    root: epath.Path, paths: list[epath.Path], split: str | None, left_out: LeftOut
) -> list[epath.Path]:
    """The files of a split; the others are reported."""
    split_of = _declared_splits(root, paths) or _named_splits(root, paths)
    if not split_of:
        if split is None:
            return paths
        raise ConfigError(
            f"{shown(root)} does not say which of its files are of a split:"
            f" leave out --split={shown(split)}"
        )
    wanted = split or TRAIN
    known = sorted(set(split_of.values()))
    if wanted not in known:
        raise ConfigError(
            f"{shown(root)} has no split {shown(wanted)} but {shown(', '.join(known))}:"
            " choose one with --split"
        )
    kept = []
    for path in paths:
        name = split_of.get(path)
        if name == wanted:
            kept.append(path)
        elif name:
            left_out.add(f"files of the split {name}", _name(path, root))
        else:
            left_out.add("files of no split", _name(path, root))
    return kept


def _declared_splits(
    root: epath.Path, paths: list[epath.Path]
) -> dict[epath.Path, str]:
    """The split of each file by the README of a snapshot.

    It is that of the default configuration, or of the first one.
    """
    declared = _front_matter(root)
    split_of = {}
    for path in paths:
        name = _name(path, root)
        # A later pattern wins.
        for split, pattern in declared:
            folder = pattern.rstrip("/") + "/"
            if fnmatch.fnmatchcase(name, pattern) or name.startswith(folder):
                split_of[path] = split
    return split_of


def _front_matter(root: epath.Path) -> list[tuple[str, str]]:
    """Pairs of a split and a pattern of files, from the YAML at the top of a README."""
    readme = root / "README.md"
    if not files.is_plain(readme):
        return []
    with readme.open("rb") as file:
        content = file.read(FRONT_MATTER)
    head = content.decode(errors="replace").replace("\r\n", "\n")
    # It stands between two lines of dashes.
    end = head.find("\n---", 3)
    if not head.startswith("---\n") or end < 0:
        return []
    text = head[4:end]
    yaml = optional("yaml")
    try:
        # The base loader makes only strings, lists and objects.
        values = yaml.load(text, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return []  # the names of the files decide instead
    # Anchors of YAML can make a short text a list without end.
    pairs = list(itertools.islice(_pairs(values), PATTERNS + 1))
    if len(pairs) > PATTERNS:
        raise ConfigError(
            f"{shown(readme)} gives more than {PATTERNS:,} patterns of files:"
            " shorten its list of data_files"
        )
    return pairs


def _pairs(values: Any) -> Iterator[tuple[str, str]]:
    """Pairs of a split and a pattern; anything of an unexpected type is skipped."""
    data_files = _data_files(values)
    if isinstance(data_files, str):
        data_files = [data_files]
    if not isinstance(data_files, list):
        return
    # Plain patterns are those of the training split.
    if not any(isinstance(entry, dict) for entry in data_files):
        data_files = [{"split": TRAIN, "path": data_files}]
    for entry in data_files:
        if not isinstance(entry, dict):
            continue
        split = entry.get("split")
        patterns = entry.get("path")
        if not isinstance(patterns, list):
            patterns = [patterns]
        for pattern in patterns:
            if isinstance(split, str) and isinstance(pattern, str):
                yield split, pattern


def _data_files(values: Any) -> Any:
    """The data_files of the default configuration, or of the first one."""
    if not isinstance(values, dict) or not isinstance(values.get("configs"), list):
        return None
    configs = [config for config in values["configs"] if isinstance(config, dict)]
    if not configs:
        return None
    chosen = configs[0]
    for config in configs:
        is_marked = config.get("default") == "true"
        if is_marked or config.get("config_name") == "default":
            chosen = config
            break
    return chosen.get("data_files")


def _named_splits(root: epath.Path, paths: list[epath.Path]) -> dict[epath.Path, str]:
    """The split of each file by its name.

    In paths of rows any word may tell it. A text counts only if a split is its whole
    name, and only if there are such rows or a training split: it may well be called
    "test".
    """
    split_of = {}
    for path in paths:
        words = _words(path, root)
        splits = [split for split, names in SPLITS.items() if words & set(names)]
        # A name with the words of two splits tells nothing.
        if len(splits) == 1:
            split_of[path] = splits[0]
    of_rows = any(_has_rows(path) for path in split_of)
    if of_rows or TRAIN in split_of.values():
        return split_of
    return {}


def _words(path: epath.Path, root: epath.Path) -> set[str]:
    """The words of a path that may tell its split."""
    if _has_rows(path):
        name = _name(path, root).lower()
        return set(re.split(r"[^a-z]+", name))
    name = path.name
    for suffix in (*readers.PACKED, readers.kind(name) or ""):
        name = name.removesuffix(suffix)
    return {name.lower()}
