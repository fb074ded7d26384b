"""How is a file read that anyone may have put there? Only plain files of a folder itself, none larger than such a file can be.

`sparsecod export` leaves the digests of what it wrote in the folder; a file or tensor that differs from its digest is refused by name.
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
WORDS = (  # what a folder may say beside config and weights
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
MIB = 2**20
LARGEST_WORDS = 16 * MIB  # of each of them
ALL_WORDS = 64 * MIB
LARGEST_JSON = 256 * MIB  # of an index, a tokenizer or digests


def find(folder: epath.Path, name: str) -> epath.Path:
    """A file in the folder itself, not a way out of it.

    Raises:
      ConfigError: the name leads elsewhere, or there is no plain file of that name.
    """
    file = folder / name
    if epath.Path(name).name != name or name in ("", ".", ".."):
        raise ConfigError(
            f"{folder} names the file {name!r}, which is not in the folder itself: get the model from a source that you trust"
        )
    try:
        mode = os.lstat(file).st_mode
    except (OSError, ValueError):
        raise ConfigError(
            f"there is no {file}: a folder of Hugging Face has config.json, model.safetensors (or its index and shards) and tokenizer.json,"
            " download what is missing"
        ) from None
    if stat.S_ISLNK(mode):
        raise ConfigError(
            f"{file} is a link to another place: copy the folder with its links resolved, as `cp -rL` does"
        )
    if not stat.S_ISREG(mode):
        raise ConfigError(
            f"{file} is not a plain file: get the model from a source that you trust"
        )
    return file


def read(folder: epath.Path, name: str, largest: int, digests: dict[str, str]) -> bytes:
    """The content of a file in the folder itself.

    Args:
      largest: bytes that such a file may have.
      digests: of files, by name; one that is not among them is taken as it is.

    Raises:
      ConfigError: as `find` does; or it is too large, or differs from its digest.
    """
    file = find(folder, name)
    size = os.stat(file).st_size
    if size > largest:
        raise ConfigError(
            f"{file} has {size:,} bytes, where {largest:,} are enough: get the model from a source that you trust"
        )
    content = file.read_bytes()
    if _differs(name, content, digests):
        raise ConfigError(
            f"{file} was changed after it was exported: copy it again, or delete {DIGESTS} if you changed it yourself"
        )
    return content


def _differs(name: str, content: bytes, digests: dict[str, str]) -> bool:
    return digests.get(name) not in (None, hashlib.sha256(content).hexdigest())


def read_json(
    folder: epath.Path, name: str, largest: int, digests: dict[str, str]
) -> dict[str, Any]:
    """The object in a file, which is read as `read` does."""
    try:
        values = json.loads(read(folder, name, largest, digests))
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{folder / name} is not JSON ({error}): download it again"
        ) from error
    if not isinstance(values, dict):
        raise ConfigError(f"{folder / name} does not hold an object: download it again")
    return values


def read_words(folder: epath.Path, digests: dict[str, str]) -> dict[str, bytes]:
    """What a folder says about itself, by file: card, licence, settings.

    Raises:
      ConfigError: as `read` does; or it is too much, or settings name code to be run.
    """
    words = {}
    for name in sorted(
        file.name
        for file in folder.iterdir()
        if any(fnmatch(file.name, kept) for kept in WORDS)
    ):
        for_people = not name.endswith(
            (".json", ".jinja")
        )  # whoever publishes a model changes its card
        words[name] = read(folder, name, LARGEST_WORDS, {} if for_people else digests)
        if sum(map(len, words.values())) > ALL_WORDS:
            raise ConfigError(
                f"{folder} says more than {ALL_WORDS:,} bytes about itself: get the model from a source that you trust"
            )
        if for_people and _differs(name, words[name], digests):
            warn_once(
                f"{shown(name)} is not the one that was exported: it is taken as it is"
            )
    for name in words:
        if name.endswith(".json") and "auto_map" in read_json(
            folder, name, LARGEST_WORDS, digests
        ):
            raise ConfigError(
                f"{folder / name} names code of its own (auto_map), which nothing here may run: choose another model"
            )
    return words


def read_digests(folder: epath.Path) -> tuple[dict[str, str], dict[str, str]]:
    """The digests of tensors and of files that an export left, by name; none where there are none.

    Raises:
      ConfigError: they are damaged.
    """
    if not os.path.lexists(folder / DIGESTS):
        return {}, {}
    read(folder, DIGESTS, LARGEST_JSON, {})
    record = records.read_record(folder / DIGESTS)
    for section in ("tensors", "files"):
        values = record.get(section)
        if not isinstance(values, dict) or not all(
            isinstance(digest, str) for digest in values.values()
        ):
            raise ConfigError(
                f"{folder / DIGESTS} has no digests of {section}: copy it again"
            )
    return record["tensors"], record["files"]
