"""How is one file read as documents?

Nothing here trusts a file: no line or document is longer than LONGEST, no packed file grows beyond
reason, and whatever is wrong with a file is one sentence that names it.
"""

import codecs
import csv
import dataclasses
import gzip
import importlib
import io
import json
from collections.abc import Callable, Iterator
from typing import IO, Any

from etils import epath

from sparsecod_jax.errors import ConfigError
from sparsecod_jax.shell.shown import shown
from sparsecod_jax.storage import files

LONGEST = 2**28  # bytes of a line or document
CHUNK = 2**20  # bytes read at a time
LONGEST_FIELD = (
    2**24
)  # characters of a field of CSV, as a quote that is never closed is read line by line
FREE = 2**26  # bytes that any file may give
GROWTH = 200  # times its size that a file may give beyond that; text is packed to a twentieth at best
WINDOW = 2**31  # bytes of history that zstandard may need, as in Reddit's dumps

PACKED = (".gz", ".zst")
TEXT = (".txt", ".md", ".rst", ".py")
ROWS = (".jsonl", ".json", ".csv", ".parquet")


@dataclasses.dataclass(frozen=True)
class Fields:
    """What is read of a file: of rows the text in `text_field`; a text is cut at each `separator`."""

    text_field: str = "text"
    separator: str | None = None


Reader = Callable[[epath.Path, Fields], Iterator[str | None]]


def kind(name: str) -> str | None:
    """The suffix that tells how a file is read, without what tells that it is packed; None where it can't be."""
    packed = next((suffix for suffix in PACKED if name.endswith(suffix)), "")
    inner = name.removesuffix(packed)
    known = TEXT + ROWS[:-1] if packed else TEXT + ROWS
    return next((suffix for suffix in known if inner.lower().endswith(suffix)), None)


def reader(path: epath.Path) -> Reader | None:
    """What reads a file of that name; None where nothing does."""
    readers: dict[str, Reader] = {
        ".jsonl": _jsonl,
        ".json": _json,
        ".csv": _csv,
        ".parquet": _parquet,
    }
    suffix = kind(path.name)
    return _text if suffix in TEXT else readers.get(suffix or "")


def unpacked(path: epath.Path) -> Iterator[bytes]:
    """The content of a file, a chunk at a time.

    Raises:
      ConfigError: it is no plain file, damaged, or grows without reason.
    """
    files.check_plain(path)
    size = path.stat().length
    given = 0
    try:
        with path.open("rb") as raw, _unpacking(path.name, raw) as file:
            while chunk := file.read(CHUNK):
                given += len(chunk)
                _check_growth(path, given, size)
                yield chunk
    except ConfigError:
        raise
    except PermissionError as error:
        raise ConfigError(
            f"{shown(path)} can't be read ({error.strerror}): change who may read it, or remove it"
        ) from error
    except Exception as error:  # gzip, zlib and zstandard raise unrelated types
        raise ConfigError(
            f"{shown(path)} is damaged ({shown(error)}): copy it again"
        ) from error


def _check_growth(path: epath.Path, given: int, size: int) -> None:
    if given > FREE and given > GROWTH * size:
        raise ConfigError(
            f"{shown(path)} is more than {GROWTH} times its size when it is unpacked: look at what is in it"
        )


def _unpacking(name: str, raw: IO[bytes]) -> IO[bytes]:
    if name.endswith(".gz"):
        return gzip.open(raw)  # pyright: ignore[reportReturnType]
    if name.endswith(".zst"):
        opened = (
            optional("zstandard")
            .ZstdDecompressor(max_window_size=WINDOW)
            .stream_reader(raw, read_across_frames=True)
        )
        return io.BufferedReader(opened, CHUNK)
    return raw


def _lines(path: epath.Path) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, with their numbers."""
    number = 0
    for part in _parts(path, b"\n", skip_blank=True):
        number += 1
        if not part.strip():
            number += part.count(b"\n")  # of many blank lines at once
        else:
            yield number, part


def _parts(
    path: epath.Path, separator: bytes, *, skip_blank: bool = False
) -> Iterator[bytes]:
    """What stands between separators, never more than LONGEST bytes of it in memory; many blank parts may come as one."""
    rest = bytearray()
    for chunk in unpacked(path):
        if skip_blank and chunk.isspace() and chunk.endswith(separator) and not rest:
            yield chunk[: -len(separator)]
            continue
        searched = max(
            len(rest) - len(separator) + 1, 0
        )  # what was there before has no separator
        rest += chunk
        if separator in memoryview(rest)[searched:].tobytes():
            *parts, last = bytes(rest).split(separator)
            yield from parts
            rest = bytearray(last)
        if len(rest) > LONGEST:
            raise ConfigError(
                f"{shown(path)} has more than {LONGEST:,} bytes without an end of {_end(separator)}: divide it"
            )
    yield bytes(rest)


def _end(separator: bytes) -> str:
    return (
        "a line"
        if separator == b"\n"
        else f"a document (--separator={shown(separator.decode())!r})"
    )


def _decode(path: epath.Path, content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{shown(path)}{where} is not UTF-8 text (byte {error.start}): convert or remove it"
        ) from error


def _text(path: epath.Path, fields: Fields) -> Iterator[str]:
    if fields.separator:
        for number, part in enumerate(_parts(path, fields.separator.encode()), 1):
            yield _decode(path, part, f", document {number}").strip("\r\n")
        return
    content = bytearray()
    for chunk in unpacked(path):
        content += chunk
        if len(content) > LONGEST:
            raise ConfigError(
                f"{shown(path)} is one document of more than {LONGEST:,} bytes: name what divides its documents with --separator"
            )
    yield _decode(path, bytes(content), "")


def _jsonl(path: epath.Path, fields: Fields) -> Iterator[str | None]:
    for number, line in _lines(path):
        if line != codecs.BOM_UTF8:
            yield _field(
                path, f", line {number}", _parse(path, f", line {number}", line), fields
            )


def _json(path: epath.Path, fields: Fields) -> Iterator[str | None]:
    """JSON lines, as C4 and Dolma have, or one list of objects."""
    if next((chunk.lstrip()[:1] for chunk in unpacked(path)), b"") != b"[":
        yield from _jsonl(path, fields)
        return
    content = bytearray()
    for chunk in unpacked(path):
        content += chunk
        if len(content) > LONGEST:
            raise ConfigError(
                f"{shown(path)} is one list of more than {LONGEST:,} bytes: convert it to JSON lines"
            )
    rows = _parse(path, "", bytes(content))
    for number, row in enumerate(rows if isinstance(rows, list) else [rows], 1):
        yield _field(path, f", item {number}", row, fields)


def _parse(path: epath.Path, where: str, content: bytes) -> Any:
    try:
        return json.loads(content.removeprefix(codecs.BOM_UTF8))
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{shown(path)}{where} is not JSON ({shown(error, 100)}): mend or remove it"
        ) from error


def _field(path: epath.Path, where: str, row: Any, fields: Fields) -> str | None:
    if not isinstance(row, dict):
        raise ConfigError(
            f"{shown(path)}{where} is not a JSON object: mend or remove it"
        )
    if fields.text_field not in row:
        raise no_field(path, where, list(row), fields)
    return checked(path, where, row[fields.text_field], fields)


def no_field(path: object, where: str, names: list[str], fields: Fields) -> ConfigError:
    """What to say where the text is not where it was looked for."""
    there = shown(", ".join(map(str, names)), 200) or "nothing"
    return ConfigError(
        f"{shown(path)}{where} has no {shown(fields.text_field)!r} but {there}: name the field that holds the documents with --text_field"
    )


def checked(path: object, where: str, text: Any, fields: Fields) -> str | None:
    """A text as it is, binary text decoded, and null.

    Raises:
      ConfigError: it is something else, or can't be written as UTF-8.
    """
    if text is None:
        return None
    try:
        text = text.decode() if isinstance(text, bytes) else text
        size = len(text.encode())  # fails on a number, a list or half a surrogate pair
    except (ValueError, AttributeError) as error:
        what = (
            f"{type(text).__name__}, not text"
            if not isinstance(text, (str, bytes))
            else "text that is not UTF-8"
        )
        raise ConfigError(
            f"{shown(path)}{where} has {what} in {shown(fields.text_field)!r}: mend it, or name another field with --text_field"
        ) from error
    if size > LONGEST:
        raise ConfigError(
            f"{shown(path)}{where} has a document of more than {LONGEST:,} bytes: divide it"
        )
    return text


def _csv(path: epath.Path, fields: Fields) -> Iterator[str | None]:
    """Rows under a first row of names; quoted fields may hold ends of lines."""
    csv.field_size_limit(LONGEST_FIELD)
    lines = (
        _decode(path, line, f", line {number}") + "\n"
        for number, line in enumerate(_parts(path, b"\n"), 1)
    )
    rows = csv.DictReader(lines, strict=True)
    try:
        names = list(rows.fieldnames or [])
        if fields.text_field not in names:
            raise no_field(path, "", names, fields)
        for row in rows:
            yield row[fields.text_field]
    except csv.Error as error:
        raise ConfigError(
            f"{shown(path)}, line {rows.line_num} is not CSV ({shown(error)}): mend or remove it"
        ) from error


def _parquet(path: epath.Path, fields: Fields) -> Iterator[str | None]:
    files.check_plain(path)
    pyarrow, parquet = optional("pyarrow"), optional("pyarrow.parquet")
    try:
        with path.open("rb") as file:
            schema = parquet.ParquetFile(file).schema_arrow
            names = schema.names
            if fields.text_field not in names:
                raise no_field(path, "", names, fields)
            if names.count(fields.text_field) > 1:
                raise ConfigError(
                    f"{shown(path)} has several columns {shown(fields.text_field)!r}: name another with --text_field"
                )
            _check_type(path, schema.field(fields.text_field).type, fields)
            table = parquet.ParquetFile(
                file, read_dictionary=[fields.text_field]
            )  # a text that is repeated stays one in memory
            given, size = 0, path.stat().length
            for batch in table.iter_batches(
                batch_size=1024, columns=[fields.text_field]
            ):
                for value in batch.column(0):
                    text = checked(path, "", value.as_py(), fields)
                    given += len(text or "")
                    _check_growth(path, given, size)
                    yield text
    except ConfigError:
        raise
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{shown(path)} has text that is not UTF-8 in {shown(fields.text_field)!r}: convert or remove it"
        ) from error
    except (ValueError, OSError, MemoryError, pyarrow.ArrowException) as error:
        raise ConfigError(
            f"{shown(path)} is not a whole parquet file ({shown(error, 200)}): copy it again"
        ) from error


def _check_type(path: epath.Path, type_: Any, fields: Fields) -> None:
    types = optional("pyarrow").types
    kind = type_.value_type if types.is_dictionary(type_) else type_
    checks = (
        types.is_string,
        types.is_large_string,
        types.is_string_view,
        types.is_binary,
        types.is_large_binary,
        types.is_null,
    )
    if not any(check(kind) for check in checks):
        raise ConfigError(
            f"{shown(path)} has {shown(type_)} in the column {shown(fields.text_field)!r}, not text: name another with --text_field"
        )


def optional(module: str) -> Any:
    """A module of the extra `data`.

    Raises:
      ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"{module} is not installed: pip install 'sparsecod-jax[data]'"
        ) from error
