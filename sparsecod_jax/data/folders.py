"""Which files of a folder are documents?

Files of text and of rows in the order of their names, links followed. Left out, and named, are hidden
files, what describes a data set rather than being one, other splits than the one that is asked for,
folders that were seen already under another name, and what can't be read. A data set says its splits
by the README of a snapshot, else by the names of its files.
"""

import fnmatch
import itertools
import os
import re
from collections.abc import Iterator
from typing import Any

from etils import epath

from sparsecod_jax.data import readers
from sparsecod_jax.data.left_out import LeftOut
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.shell.shown import shown
from sparsecod_jax.storage import files

TRAIN = "train"
SPLITS = {  # the words for a split in names of files and folders
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
ABOUT = re.compile(
    r"(readme|licen[cs]e|copying|notice|citation|changelog|\.?gitattributes)\b.*",
    re.IGNORECASE,
)
SETTINGS = (
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
    "config.json",
    "metadata.json",
)
FRONT_MATTER = 2**20  # bytes of a README that are looked at
PATTERNS = 10_000  # of files that it may give


def documents_in(
    root: epath.Path, split: str | None, left_out: LeftOut
) -> list[epath.Path]:
    """The files of `root` that hold documents of `split` (None is the training split, or all where there are no splits), in order.

    Raises:
      ConfigError: there is none, or a link leads nowhere.
    """
    found = []
    for path in _files(root, {_real(root)}, left_out):
        if readers.kind(path.name) is None:
            left_out.add("files of a kind that can't be read", _name(path, root))
        else:
            found.append(path)
    rows = [
        path
        for path in found
        if readers.kind(path.name) in readers.ROWS and path.name not in SETTINGS
    ]
    kept = []
    for path in found:
        about = ABOUT.fullmatch(path.name) and (rows or path.parent == root)
        if path.name in SETTINGS or (about and path not in rows):
            left_out.add("files about the data", _name(path, root))
        else:
            kept.append(path)
    if not kept:
        raise _nothing_to_read(root)
    return _of_split(root, kept, split, left_out)


def _nothing_to_read(root: epath.Path) -> ConfigError:
    kinds = ", ".join((*readers.TEXT, *readers.ROWS[:-1]))
    return ConfigError(
        f"{shown(root)} holds no file that can be read: use {kinds} (also .gz or .zst) or .parquet"
    )


def one_file(path: epath.Path) -> list[epath.Path]:
    """A source that is itself a file.

    Raises:
      ConfigError: it is no plain file, or of a kind that can't be read.
    """
    files.check_plain(path)
    if readers.kind(path.name) is None:
        raise _nothing_to_read(path)
    return [path]


def _files(
    folder: epath.Path,
    seen: set[str],
    left_out: LeftOut,
    root: epath.Path | None = None,
) -> Iterator[epath.Path]:
    root = root or folder
    try:
        listed = sorted(folder.iterdir(), key=os.fspath)
    except OSError as error:
        raise ConfigError(
            f"{shown(folder)} can't be listed ({error.strerror}): change who may read it, or remove it"
        ) from error
    for path in listed:
        if path.name.startswith(".") or path.name == "__MACOSX":
            left_out.add("hidden files", _name(path, root))
        elif path.is_dir():
            if _real(path) in seen:
                left_out.add(
                    "folders that were seen under another name", _name(path, root)
                )
                continue
            seen.add(_real(path))
            yield from _files(path, seen, left_out, root)
        elif path.exists() and not files.is_plain(path):
            left_out.add("pipes and devices", _name(path, root))
        else:
            files.check_plain(path)
            yield path


def _real(folder: epath.Path) -> str:
    return os.fspath(folder) if files.is_remote(folder) else os.path.realpath(folder)


def _name(path: epath.Path, root: epath.Path) -> str:
    return os.fspath(path.relative_to(root))


def _of_split(
    root: epath.Path, paths: list[epath.Path], split: str | None, left_out: LeftOut
) -> list[epath.Path]:
    by_split = _declared(root, paths) or _named(root, paths)
    if not by_split and split is not None:
        raise ConfigError(
            f"{shown(root)} does not say which of its files are of a split: leave out --split={shown(split)}"
        )
    if not by_split:
        return paths
    wanted, known = split or TRAIN, sorted(set(by_split.values()))
    if wanted not in known:
        raise ConfigError(
            f"{shown(root)} has no split {shown(wanted)} but {shown(', '.join(known))}: choose one with --split"
        )
    for path in paths:
        if by_split.get(path) != wanted:
            name = by_split.get(path)
            left_out.add(
                f"files of the split {name}" if name else "files of no split",
                _name(path, root),
            )
    return [path for path in paths if by_split.get(path) == wanted]


def _declared(root: epath.Path, paths: list[epath.Path]) -> dict[epath.Path, str]:
    """The splits that the README of a snapshot gives to files; those of its default configuration, or its only one."""
    splits = _front_matter(root)
    found = {}
    for path in paths:
        name = _name(path, root)
        for split, pattern in splits:
            if fnmatch.fnmatchcase(name, pattern) or name.startswith(
                pattern.rstrip("/") + "/"
            ):
                found[path] = split
    return found


def _front_matter(root: epath.Path) -> list[tuple[str, str]]:
    """Pairs of a split and a pattern of files."""
    readme = root / "README.md"
    if not files.is_plain(readme):
        return []
    with readme.open("rb") as file:
        head = file.read(FRONT_MATTER).decode(errors="replace").replace("\r\n", "\n")
    if not head.startswith("---\n") or "\n---" not in head[3:]:
        return []
    yaml = readers.optional("yaml")
    try:
        values = yaml.load(
            head[4 : head.index("\n---", 3)], Loader=yaml.BaseLoader
        )  # nothing but texts, lists and objects
    except (yaml.YAMLError, ValueError, RecursionError):
        return []  # the names of files will tell
    pairs = list(itertools.islice(_pairs(values), PATTERNS + 1))
    if len(pairs) > PATTERNS:
        raise ConfigError(
            f"{shown(readme)} gives more than {PATTERNS:,} patterns of files: shorten its list of data_files"
        )
    return pairs


def _pairs(values: Any) -> Iterator[tuple[str, str]]:
    configs = values.get("configs") if isinstance(values, dict) else None
    configs = (
        [config for config in configs if isinstance(config, dict)]
        if isinstance(configs, list)
        else []
    )
    chosen = [
        config
        for config in configs
        if config.get("default") == "true" or config.get("config_name") == "default"
    ] or configs
    data_files = chosen[0].get("data_files") if chosen else None
    if isinstance(data_files, (str, list)) and not any(
        isinstance(entry, dict) for entry in data_files
    ):
        data_files = [{"split": TRAIN, "path": data_files}]
    for entry in data_files if isinstance(data_files, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("split"), str):
            patterns = entry.get("path")
            for pattern in patterns if isinstance(patterns, list) else [patterns]:
                if isinstance(pattern, str):
                    yield entry["split"], pattern


def _named(root: epath.Path, paths: list[epath.Path]) -> dict[epath.Path, str]:
    """The splits that words in the names of files of rows and of their folders tell, or texts that are called just by a split."""
    found = {}
    for path in paths:
        name = _name(path, root)
        stem = (
            path.name.removesuffix(".gz")
            .removesuffix(".zst")
            .removesuffix(readers.kind(path.name) or "")
        )
        words = (
            re.split(r"[^a-z]+", name.lower())
            if readers.kind(path.name) in readers.ROWS
            else [stem.lower()]
        )
        splits = [
            split
            for split, names in SPLITS.items()
            if any(word in names for word in words)
        ]
        if len(splits) == 1:
            found[path] = splits[0]
    of_rows = any(readers.kind(path.name) in readers.ROWS for path in found)
    return (
        found if of_rows or TRAIN in found.values() else {}
    )  # a text may well be called "test"
