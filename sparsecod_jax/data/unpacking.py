"""How is a file read a piece at a time, without trusting it?

Decompression and splitting: no line or document is longer than LONGEST, no compressed
file expands beyond reason, and whatever is wrong is one sentence that names the file.
"""

import gzip
import io
from collections.abc import Iterator
from typing import IO

from etils import epath

from sparsecod_jax.data.extras import optional
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.shell.shown import shown
from sparsecod_jax.storage import files

LONGEST = 2**28  # bytes of a line or document
CHUNK = 2**20  # bytes read at a time
FREE = 2**26  # bytes that any file may expand to, however small it is
# How many times its size a file may expand to beyond that; text is compressed to a
# twentieth at best.
GROWTH = 200
WINDOW = 2**31  # bytes of history that zstandard may need, as in Reddit's dumps


def unpacked(path: epath.Path) -> Iterator[bytes]:
    """The content of a file, one chunk at a time.

    Raises:
      ConfigError: it is not a plain file, is damaged, or expands beyond reason.
    """
    files.check_plain(path)
    size = path.stat().length
    expanded = 0
    try:
        with path.open("rb") as raw, _decompressed(path.name, raw) as file:
            while chunk := file.read(CHUNK):
                expanded += len(chunk)
                check_growth(path, expanded, size)
                yield chunk
    except ConfigError:
        raise
    except PermissionError as error:
        raise ConfigError(
            f"{shown(path)} can't be read ({error.strerror}):"
            " change who may read it, or remove it"
        ) from error
    except Exception as error:  # gzip, zlib and zstandard raise unrelated types
        raise ConfigError(
            f"{shown(path)} is damaged ({shown(error)}): copy it again"
        ) from error


def check_growth(path: epath.Path, expanded: int, size: int) -> None:
    """Refuses a file of `size` bytes that expands too far.

    Raises:
      ConfigError: it does.
    """
    if expanded > FREE and expanded > GROWTH * size:
        raise ConfigError(
            f"{shown(path)} is more than {GROWTH} times its size when it is unpacked:"
            " look at what is in it"
        )


def _decompressed(name: str, raw: IO[bytes]) -> IO[bytes]:
    """An open file without its compression, which its name tells."""
    if name.endswith(".gz"):
        return gzip.open(raw)  # pyright: ignore[reportReturnType]
    if name.endswith(".zst"):
        decompressor = optional("zstandard").ZstdDecompressor(max_window_size=WINDOW)
        stream = decompressor.stream_reader(raw, read_across_frames=True)
        return io.BufferedReader(stream, CHUNK)
    return raw


def whole(path: epath.Path, what: str, advice: str) -> bytes:
    """The whole content of a file that holds one document or list.

    Args:
      what: is in the file, for the message where it is too long.
      advice: what to do then.

    Raises:
      ConfigError: it is longer than LONGEST, or as `unpacked`.
    """
    content = bytearray()
    for chunk in unpacked(path):
        content += chunk
        if len(content) > LONGEST:
            raise ConfigError(
                f"{shown(path)} is one {what} of more than {LONGEST:,} bytes: {advice}"
            )
    return bytes(content)


def lines(path: epath.Path) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, with their numbers from 1.

    Raises:
      ConfigError: as `parts`.
    """
    number = 0
    for part in parts(path, b"\n", skip_blank=True):
        number += 1
        if part.strip():
            yield number, part
        else:
            number += part.count(b"\n")  # it may be many blank lines


def parts(
    path: epath.Path, separator: bytes, *, skip_blank: bool = False
) -> Iterator[bytes]:
    """What lies between separators, with at most LONGEST bytes of it in memory.

    Args:
      skip_blank: many blank parts may be returned as one, with separators in it.

    Raises:
      ConfigError: a part is longer than LONGEST, or as `unpacked`.
    """
    rest = bytearray()
    for chunk in unpacked(path):
        is_blank = chunk.isspace() and chunk.endswith(separator)
        if skip_blank and is_blank and not rest:
            yield chunk[: -len(separator)]
            continue
        # The rest holds no separator, though one may begin at its end.
        searched = max(len(rest) - len(separator) + 1, 0)
        rest += chunk
        if separator in memoryview(rest)[searched:].tobytes():
            *complete, last = bytes(rest).split(separator)
            yield from complete
            rest = bytearray(last)
        if len(rest) > LONGEST:
            raise ConfigError(
                f"{shown(path)} has more than {LONGEST:,} bytes without an end of"
                f" {_name_of_part(separator)}: divide it"
            )
    yield bytes(rest)


def _name_of_part(separator: bytes) -> str:
    if separator == b"\n":
        return "a line"
    return f"a document (--separator={shown(separator.decode())!r})"
