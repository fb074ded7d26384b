"""How is a file read that anyone may have put there?

Files of a Hugging Face model folder: only plain files of the folder itself are opened, and
none larger than such a file can be. `sparsecod export` leaves the digests of what it wrote
in the folder; a file or tensor that differs from its digest is refused by name.
"""

import hashlib
import json
import os
import stat
from fnmatch import fnmatch
from typing import Any

from etils import epath

from sparsecod_jax.errors import ConfigError
from sparsecod_jax.shell.shown import shown, warn_once
from sparsecod_jax.storage import records

DIGESTS = "digests.json"  # a record: of each tensor, and of each other file
# Files beside config and weights that travel with a model through import and export.
SIDE_FILES = (
    "README.md",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)

Digests = dict[str, str]  # SHA-256 in hexadecimal, by name

MIB = 2**20
LARGEST_SIDE_FILE = 16 * MIB
ALL_SIDE_FILES = 64 * MIB
LARGEST_JSON = 256 * MIB  # of an index, a tokenizer or digests


def find(folder: epath.Path, name: str) -> epath.Path:
    """A file in the folder itself, not a way out of it.

    Raises:
      ConfigError: the name leads elsewhere, or there is no plain file of that name.
    """
    file = folder / name
    if epath.Path(name).name != name or name in ("", ".", ".."):
        raise ConfigError(
            f"{folder} names the file {name!r}, which is not in the folder itself:"
            " get the model from a source that you trust"
        )
    try:
        mode = os.lstat(file).st_mode
    except (OSError, ValueError):
        raise ConfigError(
            f"there is no {file}: a Hugging Face model folder has config.json,"
            " model.safetensors (or its index and shards) and tokenizer.json,"
            " download what is missing"
        ) from None
    if stat.S_ISLNK(mode):
        raise ConfigError(
            f"{file} is a link to another place:"
            " copy the folder with its links resolved, as `cp -rL` does"
        )
    if not stat.S_ISREG(mode):
        raise ConfigError(
            f"{file} is not a plain file: get the model from a source that you trust"
        )
    return file


def read(folder: epath.Path, name: str, largest: int, digests: Digests) -> bytes:
    """The content of a file in the folder itself.

    Args:
      largest: bytes that such a file may have.
      digests: of files, by name; a file without one is taken as it is.

    Raises:
      ConfigError: as `find` does; or the file is too large, or differs from its digest.
    """
    file = find(folder, name)
    size = os.stat(file).st_size
    if size > largest:
        raise ConfigError(
            f"{file} has {size:,} bytes, where {largest:,} are enough:"
            " get the model from a source that you trust"
        )
    content = file.read_bytes()
    if _differs(name, content, digests):
        raise ConfigError(
            f"{file} was changed after it was exported:"
            f" copy it again, or delete {DIGESTS} if you changed it yourself"
        )
    return content


def _differs(name: str, content: bytes, digests: Digests) -> bool:
    return digests.get(name) not in (None, hashlib.sha256(content).hexdigest())


def read_json(
    folder: epath.Path, name: str, largest: int, digests: Digests
) -> dict[str, Any]:
    """The object in a JSON file of the folder.

    Raises:
      ConfigError: as `read` does; or the file does not hold a JSON object.
    """
    content = read(folder, name, largest, digests)
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{folder / name} is not JSON ({error}): download it again"
        ) from error
    if not isinstance(values, dict):
        raise ConfigError(f"{folder / name} does not hold an object: download it again")
    return values


def read_side_files(folder: epath.Path, digests: Digests) -> dict[str, bytes]:
    """The folder's card, licence and settings: content by file name.

    Args:
      digests: of files, where an export left them.

    Raises:
      ConfigError: as `read` does; or they are too large together, or settings name code
        to be run.
    """
    contents = {}
    total = 0
    for name in _side_file_names(folder):
        content = contents[name] = _read_side_file(folder, name, digests)
        total += len(content)
        if total > ALL_SIDE_FILES:
            raise ConfigError(
                f"{folder} has more than {ALL_SIDE_FILES:,} bytes of card, licence and"
                " settings: get the model from a source that you trust"
            )
    for name in contents:
        if name.endswith(".json"):
            _check_no_code(folder, name, digests)
    return contents


def _side_file_names(folder: epath.Path) -> list[str]:
    names = [file.name for file in folder.iterdir()]
    return sorted(
        name for name in names if any(fnmatch(name, kept) for kept in SIDE_FILES)
    )


def _read_side_file(folder: epath.Path, name: str, digests: Digests) -> bytes:
    """One side file; of those for people, a change since the export is only warned of."""
    if name.endswith((".json", ".jinja")):
        return read(folder, name, LARGEST_SIDE_FILE, digests)
    # Whoever publishes a model changes its card.
    content = read(folder, name, LARGEST_SIDE_FILE, digests={})
    if _differs(name, content, digests):
        warn_once(
            f"{shown(name)} is not the one that was exported: it is taken as it is"
        )
    return content


def _check_no_code(folder: epath.Path, name: str, digests: Digests) -> None:
    if "auto_map" in read_json(folder, name, LARGEST_SIDE_FILE, digests):
        raise ConfigError(
            f"{folder / name} names code of its own (auto_map),"
            " which nothing here may run: choose another model"
        )


def read_digests(folder: epath.Path) -> tuple[Digests, Digests]:
    """The digests that an export left in the folder; empty without any.

    Returns:
      Those of tensors, and those of files.

    Raises:
      ConfigError: they are damaged.
    """
    if not os.path.lexists(folder / DIGESTS):
        return {}, {}
    read(folder, DIGESTS, LARGEST_JSON, digests={})
    record = records.read_record(folder / DIGESTS)
    for section in ("tensors", "files"):
        if not _maps_to_strings(record.get(section)):
            raise ConfigError(
                f"{folder / DIGESTS} has no digests of {section}: copy it again"
            )
    return record["tensors"], record["files"]


def _maps_to_strings(values: Any) -> bool:
    return isinstance(values, dict) and all(
        isinstance(value, str) for value in values.values()
    )
