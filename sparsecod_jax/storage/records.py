"""How are JSON values kept in files, so that damage is noticed?

JSON records: objects that carry a checksum over their content. Earlier versions wrote
none, so a record without a checksum is taken as it is.
"""

import hashlib
import json
import math
from typing import Any

from etils import epath

from sparsecod_jax.errors import ConfigError
from sparsecod_jax.shell.shown import shown, warn_once
from sparsecod_jax.storage import files

CHECKSUM = "checksum"  # the name under which a record carries it

# Begins each checksum, so that one is recognised even if its name was damaged.
CHECKSUM_KIND = "sha256:"


def write_json(path: epath.Path, value: Any) -> None:
    """Writes a JSON file whole or not at all."""
    files.write(path, json.dumps(value, indent=1).encode())


def read_json(path: epath.Path) -> Any:
    """Reads a JSON file that this package wrote.

    Raises:
      ConfigError: it is damaged, or not a plain file.
      FileNotFoundError: there is none.
    """
    if path.exists():
        files.check_plain(path)
    try:
        return json.loads(path.read_bytes())
    # No JSON, no UTF-8, or brackets without end.
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{shown(path)} is not JSON ({shown(error)}): "
            "restore it from a copy, or start in another --workdir"
        ) from error


def write_record(path: epath.Path, values: dict[str, Any]) -> None:
    """Writes a JSON object with a checksum over its content, whole or not at all."""
    write_json(path, {**values, CHECKSUM: _checksum(values)})


def read_record(path: epath.Path) -> dict[str, Any]:
    """Reads what `write_record` wrote, without the checksum.

    Raises:
      ConfigError: it is damaged, or was changed after it was written.
      FileNotFoundError: there is none.
    """
    values = read_json(path)
    if not isinstance(values, dict):
        raise ConfigError(
            f"{shown(path)} does not hold an object: restore it from a copy"
        )
    checksum = values.pop(CHECKSUM, None)
    misnamed = any(_is_checksum(value) for value in values.values())
    differs = checksum is not None and checksum != _checksum(values)
    if misnamed or differs:
        raise ConfigError(
            f"{shown(path)} was changed after it was written: restore it from a copy"
        )
    return values


def warn_if_unchecked(path: epath.Path) -> None:
    """Warns if this record is of an earlier version, whose damage may go unnoticed."""
    if path.exists() and CHECKSUM not in read_json(path):
        warn_once(
            f"{shown(path.parent)} was made before checksums were recorded: "
            "its records are taken as they are"
        )


def finite(value: Any) -> Any:
    """Nested JSON values with null for each number that is not finite; JSON has none."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _is_checksum(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(CHECKSUM_KIND)


def _checksum(values: dict[str, Any]) -> str:
    """A hash of the content as JSON, whatever the order of its names."""
    # JSON makes strings of names that are numbers, and strings sort otherwise.
    as_read = json.loads(json.dumps(values))
    content = json.dumps(as_read, sort_keys=True).encode()
    return CHECKSUM_KIND + hashlib.sha256(content).hexdigest()[:16]
