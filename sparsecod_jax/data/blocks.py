"""Are these the token files that were made?

Integrity of token files: a shard has a CRC-32 for each 64 KiB of its ids. Each process
compares a block once, before it uses a window of it. Small data is compared as a whole at
the start. The rest of large data is compared by a thread that takes one hundredth of a
core. Of files in an object store only what is read is compared, by reading whole blocks
the first time.

A CRC-32 detects every run of up to 32 wrong bits, and misses one in four billion other
changes. Data made before blocks were recorded is compared with the SHA-256 of its whole
files.
"""

import dataclasses
import hashlib
import os
import threading
import time
import zlib
from collections.abc import Iterator

import numpy as np
from etils import epath

from sparsecod_jax.errors import ConfigError, SparsecodError
from sparsecod_jax.shell.shown import shown
from sparsecod_jax.storage import files

BLOCK = 2**16  # bytes
DIGITS = 8  # hexadecimal digits of a block's digest
AT_ONCE = 2**24  # bytes in memory
SMALL = 2**28  # bytes of token files, which take less than half a second at the start
SHARE = 0.01  # of one core, for the thread


@dataclasses.dataclass(frozen=True)
class Shard:
    """A run of little-endian ids in a file."""

    file: str  # relative to the data directory, or absolute
    offset: int  # bytes from the start of the file
    tokens: int
    sha256: str
    # The digests of its blocks, joined; empty in data made by earlier versions.
    blocks: str = ""

    def size(self, dtype: str | np.dtype) -> int:
        """Bytes of its ids."""
        return self.tokens * np.dtype(dtype).itemsize


def digests(ids: bytes | memoryview) -> str:
    """The digests of the blocks of these bytes, joined.

    Digests of consecutive pieces can be joined if their sizes are multiples of BLOCK.
    """
    view = memoryview(ids)
    parts = []
    for start in range(0, len(view), BLOCK):
        checksum = zlib.crc32(view[start : start + BLOCK])
        parts.append(f"{checksum:0{DIGITS}x}")
    return "".join(parts)


def shard_path(directory: epath.Path, shard: Shard) -> epath.Path:
    """The path of a shard's file; a local absolute path wins over `directory`."""
    if files.is_remote(shard.file):
        return epath.Path(shard.file)
    return directory / shard.file


def read_bytes(file: epath.PathLike, start: int, stop: int) -> bytes:
    """Bytes start..stop-1 of a file.

    The file is not mapped into memory: a mapped file that shrinks, or a disk that fails,
    would kill the process.

    Raises:
      ConfigError: the file is missing or too short.
      SparsecodError: the disk cannot be read now.
    """
    if files.is_remote(file):
        content = files.read_range(file, start, stop)
    else:
        content = _read_local(file, start, stop)
    if len(content) != stop - start:
        raise _differs(file)
    return content


def _read_local(file: epath.PathLike, start: int, stop: int) -> bytes:
    """Bytes start..stop-1 of a file on this machine, or fewer where it ends."""
    try:
        with open(file, "rb", buffering=0) as opened:
            return b"".join(_parts(opened.fileno(), start, stop))
    except FileNotFoundError as error:
        raise _differs(file) from error
    except OSError as error:
        raise SparsecodError(
            f"{shown(file)} can't be read ({error.strerror}):"
            " look after its disk, and run again"
        ) from error


def _parts(descriptor: int, start: int, stop: int) -> Iterator[bytes]:
    """What several reads return, as one read returns at most 2 GiB."""
    while start < stop:
        part = os.pread(descriptor, stop - start, start)
        if not part:
            return
        yield part
        start += len(part)


def _differs(file: epath.PathLike) -> ConfigError:
    """The error of a file that is missing, too short, or has another content."""
    return ConfigError(
        f"{shown(file)} is not the token file that was made:"
        " copy it again, or make the data again in another folder"
    )


class Blocks:
    """The blocks of a split's shards, each compared once.

    Args:
      directory: of the data.
      shards: in the order of their numbers.
      dtype: of the ids.
      vocab_size: every id is below it.

    Attributes:
      size: bytes of all ids.
      remote: some files are in an object store, where only what is read is compared.
    """

    def __init__(
        self,
        directory: epath.Path,
        shards: tuple[Shard, ...],
        dtype: str,
        vocab_size: int,
    ):
        self._files = [os.fspath(shard_path(directory, shard)) for shard in shards]
        self._shards = shards
        self._vocab_size = vocab_size
        self._dtype = np.dtype(dtype).newbyteorder("<")
        # A flag per block, set by any thread. Without a lock two threads may compare the
        # same block, which does no harm.
        self._compared = [bytearray(len(shard.blocks) // DIGITS) for shard in shards]
        self._failure: Exception | None = None  # in the thread
        self.size = sum(shard.size(self._dtype) for shard in shards)
        self.remote = any(files.is_remote(file) for file in self._files)

    def check(self, number: int, start: int, stop: int) -> None:
        """Compares the blocks that hold bytes start..stop-1 of the ids of a shard.

        Args:
          number: of the shard within the split.

        Raises:
          ConfigError: a block differs, here or where the thread has read, or it has an id
            outside the vocabulary.
        """
        if self._failure:
            raise self._failure
        shard = self._shards[number]
        if not shard.blocks:
            return
        compared = self._compared[number]
        touched = range(start // BLOCK, -(-stop // BLOCK))
        waiting = [block for block in touched if not compared[block]]
        if not waiting:
            return
        # One read from the first to the last of them, even if some between are known.
        first = waiting[0]
        last = waiting[-1] + 1
        # The last block of a shard is a short one.
        stop = min(last * BLOCK, shard.size(self._dtype))
        content = read_bytes(
            self._files[number], shard.offset + first * BLOCK, shard.offset + stop
        )
        recorded = shard.blocks[first * DIGITS : last * DIGITS]
        if digests(content) != recorded:
            raise _differs(self._files[number])
        self._check_ids(number, content)
        compared[first:last] = b"\1" * (last - first)

    def check_all(self) -> None:
        """Compares everything.

        Raises:
          ConfigError: as `check`.
        """
        for _ in self._steps():
            pass

    def watch(self) -> None:
        """Compares everything in a thread that ends with the process.

        The next `check` raises what it finds.
        """
        thread = threading.Thread(
            target=self._check_slowly, name="token files", daemon=True
        )
        thread.start()

    def _check_slowly(self) -> None:
        """Runs in the thread, while the rest of the process trains."""
        began = time.monotonic()
        try:
            for _ in self._steps():
                # Sleeping in proportion to the work bounds the share of a core.
                time.sleep((time.monotonic() - began) / SHARE)
                began = time.monotonic()
        # Whatever ended the comparison, training must not continue without it.
        except Exception as error:
            self._failure = error

    def _steps(self) -> Iterator[None]:
        """Compares everything, AT_ONCE bytes per step."""
        for number, shard in enumerate(self._shards):
            if shard.blocks:
                yield from self._check_blocks(number)
            else:
                yield from self._check_sha256(number)

    def _check_blocks(self, number: int) -> Iterator[None]:
        size = self._shards[number].size(self._dtype)
        for start in range(0, size, AT_ONCE):
            stop = min(start + AT_ONCE, size)
            self.check(number, start, stop)
            yield

    def _check_sha256(self, number: int) -> Iterator[None]:
        """Compares old data, whose digest covers the header of a file made here.

        That of a range of a raw file, which has an absolute path, covers the ids alone.
        """
        shard = self._shards[number]
        file = self._files[number]
        digest = hashlib.sha256()
        is_raw = os.path.isabs(shard.file) or files.is_remote(shard.file)
        if not is_raw:
            header = read_bytes(file, 0, shard.offset)
            digest.update(header)
        stop = shard.offset + shard.size(self._dtype)
        for start in range(shard.offset, stop, AT_ONCE):
            content = read_bytes(file, start, min(start + AT_ONCE, stop))
            self._check_ids(number, content)
            digest.update(content)
            yield
        if digest.hexdigest() != shard.sha256:
            raise _differs(file)

    def _check_ids(self, number: int, content: bytes) -> None:
        # An embedding would be looked up outside its table without an error.
        ids = np.frombuffer(content, self._dtype)
        highest = ids.max(initial=0)
        if highest >= self._vocab_size:
            raise ConfigError(
                f"{shown(self._files[number])} has id {highest}, and the vocabulary ends at"
                f" {self._vocab_size - 1}: copy it again, or make the data again in another"
                " folder"
            )
