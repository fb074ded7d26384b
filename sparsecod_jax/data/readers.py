"""How is one file read as documents?

File formats: plain text, JSON lines, JSON, CSV and Parquet. No file is trusted (see
`unpacking`): whatever is wrong with it is one sentence that names it.
"""

import codecs
import csv
import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from sparsecod_jax.data import unpacking
from sparsecod_jax.data.extras import optional
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.shell.shown import shown
from sparsecod_jax.storage import files

# Characters of a field of CSV, as a quote that is never closed is read line by line.
LONGEST_FIELD = 2**24
ROWS_AT_ONCE = 1024  # of Parquet

# Suffixes of names: of compressed files, and of texts and rows, compressed or not.
PACKED = (".gz", ".zst")
TEXT = (".txt", ".md", ".rst", ".py")
ROWS = (".jsonl", ".json", ".csv", ".parquet")
PARQUET = ".parquet"  # has a compression of its own


@dataclasses.dataclass(frozen=True)
class Fields:
    """What is read of a file.

    Attributes:
      text_field: the field of a row that holds the document.
      separator: what lies between the documents of a text; None where it is one.
    """

    text_field: str = "text"
    separator: str | None = None

    @property
    def quoted(self) -> str:
        """The text field in quotes, for messages."""
        return repr(shown(self.text_field))


Texts = Iterator[str | None]  # None is a row without text
Reader = Callable[[epath.Path, Fields], Texts]


def kind(name: str) -> str | None:
    """The suffix that decides how a file is read, without that of its compression.

    None where the file cannot be read.
    """
    known = TEXT + ROWS
    for suffix in PACKED:
        if name.endswith(suffix):
            name = name.removesuffix(suffix)
            known = tuple(suffix for suffix in known if suffix != PARQUET)
            break
    name = name.lower()
    for suffix in known:
        if name.endswith(suffix):
            return suffix
    return None


def reader(path: epath.Path) -> Reader | None:
    """The function that reads a file with that name; None where there is none."""
    suffix = kind(path.name)
    if suffix in TEXT:
        return _text
    readers: dict[str, Reader] = {
        ".jsonl": _jsonl,
        ".json": _json,
        ".csv": _csv,
        PARQUET: _parquet,
    }
    return readers.get(suffix or "")


def _decode(path: epath.Path, content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{shown(path)}{where} is not UTF-8 text (byte {error.start}):"
            " convert or remove it"
        ) from error


def _text(path: epath.Path, fields: Fields) -> Iterator[str]:
    """One document, or those between separators."""
    if fields.separator:
        parts = unpacking.parts(path, fields.separator.encode())
        for number, part in enumerate(parts, 1):
            text = _decode(path, part, f", document {number}")
            # Usually the separator has a line of its own.
            yield text.strip("\r\n")
        return
    advice = "name what divides its documents with --separator"
    content = unpacking.whole(path, "document", advice)
    yield _decode(path, content, "")


def _jsonl(path: epath.Path, fields: Fields) -> Texts:
    """One object per line; a file may begin with a byte order mark."""
    for number, line in unpacking.lines(path):
        if line == codecs.BOM_UTF8:
            continue  # a first line that is otherwise blank
        where = f", line {number}"
        row = _parse(path, where, line)
        yield _field(path, where, row, fields)


def _json(path: epath.Path, fields: Fields) -> Texts:
    """JSON lines, as in C4 and Dolma, or one list of objects."""
    # Many files of lines are called .json; a list begins with its bracket.
    first_chunk = next(unpacking.unpacked(path), b"")
    if not first_chunk.lstrip().startswith(b"["):
        yield from _jsonl(path, fields)
        return
    content = unpacking.whole(path, "list", "convert it to JSON lines")
    rows = _parse(path, "", content)
    if not isinstance(rows, list):
        rows = [rows]
    for number, row in enumerate(rows, 1):
        yield _field(path, f", item {number}", row, fields)


def _parse(path: epath.Path, where: str, content: bytes) -> Any:
    """Any JSON value."""
    try:
        return json.loads(content.removeprefix(codecs.BOM_UTF8))
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{shown(path)}{where} is not JSON ({shown(error, 100)}): mend or remove it"
        ) from error


def _field(path: epath.Path, where: str, row: Any, fields: Fields) -> str | None:
    """The text of a row of JSON."""
    if not isinstance(row, dict):
        raise ConfigError(
            f"{shown(path)}{where} is not a JSON object: mend or remove it"
        )
    if fields.text_field not in row:
        raise no_field(path, where, list(row), fields)
    return checked(path, where, row[fields.text_field], fields)


def no_field(path: object, where: str, names: list[str], fields: Fields) -> ConfigError:
    """The error of a row without the text field.

    Args:
      path: the file or data set.
      where: the place within it, such as ", line 3".
      names: the fields that the row has.
    """
    listed = ", ".join(str(name) for name in names)
    present = shown(listed, 200) or "nothing"
    return ConfigError(
        f"{shown(path)}{where} has no {fields.quoted} but {present}:"
        " name the field that holds the documents with --text_field"
    )


def checked(path: object, where: str, text: Any, fields: Fields) -> str | None:
    """A text or null as it is, and binary text decoded.

    Args:
      path: the file or data set.
      where: the place within it, such as ", line 3".

    Raises:
      ConfigError: it is anything else, can't be written as UTF-8, or is too long.
    """
    if text is None:
        return None
    problem = f"{type(text).__name__}, not text"
    if isinstance(text, (str, bytes)):
        problem = "text that is not UTF-8"
    try:
        if isinstance(text, bytes):
            text = text.decode()
        # This fails on a number, a list or half a surrogate pair.
        size = len(text.encode())
    except (ValueError, AttributeError) as error:
        raise ConfigError(
            f"{shown(path)}{where} has {problem} in {fields.quoted}:"
            " mend it, or name another field with --text_field"
        ) from error
    if size > unpacking.LONGEST:
        raise ConfigError(
            f"{shown(path)}{where} has a document of more than"
            f" {unpacking.LONGEST:,} bytes: divide it"
        )
    return text


def _csv(path: epath.Path, fields: Fields) -> Texts:
    """Rows below a first row of names; quoted fields may contain line ends."""
    # The default limit is 128 KiB, which many documents exceed.
    csv.field_size_limit(LONGEST_FIELD)
    rows = csv.DictReader(_csv_lines(path), strict=True)
    try:
        names = list(rows.fieldnames or [])
        if fields.text_field not in names:
            raise no_field(path, "", names, fields)
        for row in rows:
            yield row[fields.text_field]
    except csv.Error as error:
        raise ConfigError(
            f"{shown(path)}, line {rows.line_num} is not CSV ({shown(error)}):"
            " mend or remove it"
        ) from error


def _csv_lines(path: epath.Path) -> Iterator[str]:
    """Lines with their ends, which the csv module expects."""
    for number, part in enumerate(unpacking.parts(path, b"\n"), 1):
        line = _decode(path, part, f", line {number}")
        yield line + "\n"


def _parquet(path: epath.Path, fields: Fields) -> Texts:
    """Rows of a Parquet file, in order."""
    files.check_plain(path)
    pyarrow = optional("pyarrow")
    try:
        with path.open("rb") as file:
            yield from _parquet_rows(path, file, fields)
    except ConfigError:
        raise
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{shown(path)} has text that is not UTF-8 in {fields.quoted}:"
            " convert or remove it"
        ) from error
    except (ValueError, OSError, MemoryError, pyarrow.ArrowException) as error:
        raise ConfigError(
            f"{shown(path)} is not a whole parquet file ({shown(error, 200)}):"
            " copy it again"
        ) from error


def _parquet_rows(path: epath.Path, file: Any, fields: Fields) -> Texts:
    """The texts of an open file."""
    parquet = optional("pyarrow.parquet")
    schema = parquet.ParquetFile(file).schema_arrow
    _check_schema(path, schema, fields)
    # As a dictionary, so that a text that is repeated is in memory once.
    table = parquet.ParquetFile(file, read_dictionary=[fields.text_field])
    batches = table.iter_batches(batch_size=ROWS_AT_ONCE, columns=[fields.text_field])
    size = path.stat().length
    expanded = 0  # characters so far, which are no more than bytes
    for batch in batches:
        for value in batch.column(0):
            text = checked(path, "", value.as_py(), fields)
            expanded += len(text or "")
            unpacking.check_growth(path, expanded, size)
            yield text


def _check_schema(path: epath.Path, schema: Any, fields: Fields) -> None:
    """Raises ConfigError unless exactly one column has the name, and it holds text."""
    count = schema.names.count(fields.text_field)
    if count == 0:
        raise no_field(path, "", schema.names, fields)
    if count > 1:
        raise ConfigError(
            f"{shown(path)} has several columns {fields.quoted}:"
            " name another with --text_field"
        )
    type_ = schema.field(fields.text_field).type
    if not _is_text(type_):
        raise ConfigError(
            f"{shown(path)} has {shown(type_)} in the column {fields.quoted}, not text:"
            " name another with --text_field"
        )


def _is_text(type_: Any) -> bool:
    """Whether a column of this Arrow type holds text, text as bytes, or only nulls."""
    types = optional("pyarrow").types
    if types.is_dictionary(type_):
        type_ = type_.value_type
    checks = (
        types.is_string,
        types.is_large_string,
        types.is_string_view,
        types.is_binary,
        types.is_large_binary,
        types.is_null,
    )
    return any(check(type_) for check in checks)
