"""Are these the token files that were made?

A shard has a CRC-32 for each 64 KiB of its ids. A block is compared once a process, before a window
of it is used; small data is compared as a whole at the start, and the rest of large data by a thread
that takes a hundredth of one core. Of objects in a store only what is read is compared, by reading
whole blocks the first time. A CRC-32 misses no run of up to 32 wrong bits, and one of four billion
other changes. Data made before there were blocks is compared with the SHA-256 of its whole files.
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
DIGITS = 8  # of a block's digest
AT_ONCE = 2**24  # bytes in memory
SMALL = 2**28  # bytes of token files, which take less than half a second at the start
SHARE = 0.01  # of one core, for the thread


@dataclasses.dataclass(frozen=True)
class Shard:
    """`tokens` little-endian ids in `file` (relative to the data directory, or absolute), `offset` bytes from its start."""

    file: str
    offset: int
    tokens: int
    sha256: str
    blocks: str = ""  # the digests of its blocks, one after the other; none in data made by earlier versions


def digests(ids: bytes | memoryview) -> str:
    """The digests of the blocks of these bytes; of pieces that are multiples of BLOCK they can be joined."""
    view = memoryview(ids)
    return "".join(
        f"{zlib.crc32(view[start : start + BLOCK]):0{DIGITS}x}"
        for start in range(0, len(view), BLOCK)
    )


def place(directory: epath.Path, shard: Shard) -> epath.Path:
    """Where a shard's file lies."""
    return (
        epath.Path(shard.file)
        if files.is_remote(shard.file)
        else directory / shard.file
    )


def read_bytes(file: epath.PathLike, start: int, stop: int) -> bytes:
    """Bytes start..stop-1 of a file. It is not mapped: a mapped file that shrinks, or a disk that fails, would kill the process.

    Raises:
      ConfigError: the file ends before.
      SparsecodError: the disk can't be read now.
    """
    if files.is_remote(file):
        content = files.read_range(file, start, stop)
    else:
        try:
            with open(file, "rb", buffering=0) as opened:
                content = b"".join(_read(opened.fileno(), start, stop))
        except FileNotFoundError as error:
            raise _differs(file) from error
        except OSError as error:
            raise SparsecodError(
                f"{shown(file)} can't be read ({error.strerror}): look after its disk, and run again"
            ) from error
    if len(content) != stop - start:
        raise _differs(file)
    return content


def _read(descriptor: int, start: int, stop: int) -> Iterator[bytes]:
    """One read gives at most 2 GiB."""
    while start < stop and (part := os.pread(descriptor, stop - start, start)):
        yield part
        start += len(part)


def _differs(file: epath.PathLike) -> ConfigError:
    return ConfigError(
        f"{shown(file)} is not the token file that was made: copy it again, or make the data again in another folder"
    )


class Blocks:
    """The blocks of a split's shards, each compared once."""

    def __init__(
        self,
        directory: epath.Path,
        shards: tuple[Shard, ...],
        dtype: str,
        vocab_size: int,
    ):
        self._places = [os.fspath(place(directory, shard)) for shard in shards]
        self._shards, self._vocab_size = shards, vocab_size
        self._ids = np.dtype(dtype).newbyteorder("<")
        self._compared = [
            bytearray(len(shard.blocks) // DIGITS) for shard in shards
        ]  # set by any thread; twice does no harm
        self._found: Exception | None = None  # by the thread
        self.size = sum(shard.tokens for shard in shards) * self._ids.itemsize
        self.remote = any(
            files.is_remote(file) for file in self._places
        )  # some are in a store, where only what is read is compared

    def check(self, number: int, start: int, stop: int) -> None:
        """Compares the blocks that hold bytes start..stop-1 of the ids of shard `number`.

        Raises:
          ConfigError: one differs, here or where the thread has looked, or has an id beyond the vocabulary.
        """
        if self._found:
            raise self._found
        shard, compared = self._shards[number], self._compared[number]
        waiting = [
            block
            for block in range(start // BLOCK, -(-stop // BLOCK))
            if shard.blocks and not compared[block]
        ]
        if not waiting:
            return
        first, last = waiting[0], waiting[-1] + 1
        length = shard.tokens * self._ids.itemsize
        content = read_bytes(
            self._places[number],
            shard.offset + first * BLOCK,
            shard.offset + min(last * BLOCK, length),
        )
        if digests(content) != shard.blocks[first * DIGITS : last * DIGITS]:
            raise _differs(self._places[number])
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
        """Compares everything in a thread that ends with the process; what it finds is raised by the next `check`."""
        threading.Thread(target=self._look, name="token files", daemon=True).start()

    def _look(self) -> None:
        began = time.monotonic()
        try:
            for _ in self._steps():
                time.sleep((time.monotonic() - began) / SHARE)
                began = time.monotonic()
        except (
            Exception
        ) as error:  # whatever ended the comparison, training must not go on without it
            self._found = error

    def _steps(self) -> Iterator[None]:
        for number, shard in enumerate(self._shards):
            yield from self._by_blocks(number) if shard.blocks else self._whole(number)

    def _by_blocks(self, number: int) -> Iterator[None]:
        length = self._shards[number].tokens * self._ids.itemsize
        for start in range(0, length, AT_ONCE):
            self.check(number, start, min(start + AT_ONCE, length))
            yield

    def _whole(self, number: int) -> Iterator[None]:
        """By the digest of old data: of a file made here with its header, of a range of a raw file without."""
        shard, digest = self._shards[number], hashlib.sha256()
        stop = shard.offset + shard.tokens * self._ids.itemsize
        raw = os.path.isabs(shard.file) or files.is_remote(shard.file)
        if not raw:
            digest.update(read_bytes(self._places[number], 0, shard.offset))
        for start in range(shard.offset, stop, AT_ONCE):
            content = read_bytes(
                self._places[number], start, min(start + AT_ONCE, stop)
            )
            self._check_ids(number, content)
            digest.update(content)
            yield
        if digest.hexdigest() != shard.sha256:
            raise _differs(self._places[number])

    def _check_ids(self, number: int, content: bytes) -> None:
        ids = np.frombuffer(content, self._ids)
        if ids.size and (highest := int(ids.max())) >= self._vocab_size:
            raise ConfigError(
                f"{shown(self._places[number])} has id {highest}, and the vocabulary ends at {self._vocab_size - 1}:"
                " copy it again, or make the data again in another folder"
            )
