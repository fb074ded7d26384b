"""How are tokens stored on disk?

Token store: a data directory holds `manifest.json` and token shards, .npy arrays of uint16
or uint32. A shard is a run of tokens in a file, so that the manifest can name raw token
files made elsewhere where they are. Only what is requested is read, so that each host
loads its own windows, and `blocks` compares it with what was made.
"""

import bisect
import concurrent.futures
import dataclasses
import hashlib
import json
import os
from typing import Any

import numpy as np
from etils import epath

from sparsecod_jax.config import Experiment
from sparsecod_jax.data.blocks import (
    BLOCK,
    DIGITS,
    SMALL,
    Blocks,
    Shard,
    read_bytes,
    shard_path,
)
from sparsecod_jax.data.tokenizer import TOKENIZER
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.shell.shown import shown, warn_once
from sparsecod_jax.storage import files

MANIFEST = "manifest.json"
DTYPES = ("uint16", "uint32")  # of shards
REQUESTS = 32  # at a time, to a store that answers after tens of milliseconds


@dataclasses.dataclass(frozen=True)
class Split:
    """The documents of one split."""

    documents: int
    tokens: int
    text_bytes: int  # as UTF-8; 0 where only tokens were given
    unigram_entropy: float  # nats per token, by the token frequencies of this split
    shards: tuple[Shard, ...]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What `sparsecod data` made, and from what.

    Attributes:
      request: the fields of the `Request`.
      tokenizer: "bytes", or the name of its file.
      vocab_size: every id is below it.
      eos_id: ends each document.
      dtype: of the shards, without byte order, which is little-endian.
      dropped_documents: near-duplicates of others.
      before: ids with which each document begins; None in data of earlier versions, where
        there are none.
      near_duplicates: the beginnings of some.
      duplicates_forgotten: memory was full, so that near-duplicates of later documents
        were not looked for.
      left_out: what was not read; by reason, how often, and examples.
      tokenizer_digest: of tokenizer.json; None in data of earlier versions.
      round_trip: the fields of the `RoundTrip` of a sample; None where none was tried.
    """

    request: dict
    tokenizer: str
    vocab_size: int
    eos_id: int
    dtype: str
    train: Split
    validation: Split
    dropped_documents: int
    before: tuple[int, ...] | None = None
    near_duplicates: tuple[str, ...] = ()
    duplicates_forgotten: bool = False
    left_out: dict[str, Any] = dataclasses.field(default_factory=dict)
    tokenizer_digest: str | None = None
    round_trip: dict[str, Any] | None = None

    @property
    def fingerprint(self) -> str:
        """A hash of the tokens and their order, wherever the files are."""
        shards = []
        for _, split in self.splits():
            shards.append([[shard.sha256, shard.tokens] for shard in split.shards])
        content = [self.tokenizer, self.vocab_size, self.eos_id, self.dtype, shards]
        digest = hashlib.sha256(json.dumps(content).encode())
        return digest.hexdigest()[:16]

    def describe(self) -> str:
        """One line for people."""
        parts = []
        for name, split in self.splits():
            sizes = f"{split.documents:,} documents, {split.tokens:,} tokens"
            parts.append(f"{name} {sizes}")
        parts.append(f"{self.dropped_documents:,} near-duplicates dropped")
        parts.append(f"fingerprint {self.fingerprint}")
        return "; ".join(parts)

    def framing(self) -> dict[str, Any]:
        """What surrounds a text in this data, for the record of a run.

        Returns:
          `eos_id`, which ends a text; `before`, the ids with which it begins; and
          `start_id`, which stands before a text that has nothing else before it.
        """
        before = list(self.before or ())
        # Without anything else, a text follows the end of another one.
        start_id = before[-1] if before else self.eos_id
        return {"eos_id": self.eos_id, "start_id": start_id, "before": before}

    def splits(self) -> list[tuple[str, Split]]:
        """Both splits with their names."""
        return [("train", self.train), ("validation", self.validation)]

    def shards(self) -> tuple[Shard, ...]:
        """Those of both splits."""
        return (*self.train.shards, *self.validation.shards)

    def to_json(self) -> str:
        """The text of the file: all fields, the fingerprint, and a checksum over both."""
        values = {**dataclasses.asdict(self), "fingerprint": self.fingerprint}
        return json.dumps({**values, "checksum": _checksum(values)}, indent=1)


def entropy(counts: np.ndarray) -> float:
    """Entropy, in nats, of the distribution that `counts` is proportional to."""
    positive = counts[counts > 0]
    shares = positive / positive.sum()
    return float(-(shares * np.log(shares)).sum())


def _checksum(values: dict) -> str:
    """A hash of a manifest's values, without the checksum itself."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def prepare_arguments(experiment: Experiment) -> list[str]:
    """The arguments of `sparsecod` that make the experiment's data directory."""
    data = experiment.data
    arguments = ["data"]
    arguments.append(f"--source={data.source}")
    arguments.append(f"--tokenizer={data.tokenizer}")
    if data.tokenizer == "bpe":
        arguments.append(f"--vocab_size={experiment.model.vocab_size}")
    arguments.append(f"--out={data.path}")
    return arguments


def prepare_command(experiment: Experiment) -> str:
    """The command that makes the experiment's data directory, for people."""
    return " ".join(["sparsecod", *prepare_arguments(experiment)])


def read_manifest(directory: epath.Path, command: str) -> Manifest:
    """Reads a data directory's manifest.

    Checks that every shard has its size and, where all are small, its content.

    Args:
      directory: made by `sparsecod data`.
      command: how to make it, for the message when it is absent.

    Raises:
      ConfigError: the directory is absent, damaged or incomplete.
    """
    directory = files.absolute(directory)
    path = directory / MANIFEST
    if not path.exists():
        raise ConfigError(f"there is no data in {shown(directory)}: run `{command}`")
    remedy = (
        "copy it again from where it was made,"
        f" or make the data in another folder, as `{command}` does"
    )
    files.check_plain(path)
    manifest = _parse(path, remedy)
    _check_tokenizer(directory / TOKENIZER, manifest, remedy)
    _check_lengths(directory, manifest, remedy)
    shards = manifest.shards()
    blocks = Blocks(directory, shards, manifest.dtype, manifest.vocab_size)
    # Large data is compared where it is read, and by a thread (`Windows.watch`).
    if blocks.size <= SMALL and not blocks.remote:
        blocks.check_all()
    if manifest.before is None:
        _warn_of_old_data(directory, blocks.remote)
    return manifest


def _parse(path: epath.Path, remedy: str) -> Manifest:
    """Reads a file that anyone may have written; `remedy` ends the error messages."""
    try:
        values = json.loads(path.read_bytes())
        checksum = values.pop("checksum")
        intact = checksum == _checksum(values)
        manifest = _from_values(values)
        _check_values(manifest)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"{shown(path)} can't be read as a manifest of data ({shown(error)}): {remedy}"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"{shown(path)} can't be read ({error.strerror}): {remedy}"
        ) from error
    # Checked last, as the more telling error is that it can't be read at all.
    if not intact:
        raise ConfigError(f"{shown(path)} was changed after it was made: {remedy}")
    return manifest


def _from_values(values: dict[str, Any]) -> Manifest:
    """A manifest from JSON, whose values may have any type."""
    fields = dict(values)
    del fields["fingerprint"]  # it follows from the others
    for name in ("train", "validation"):
        split = fields[name]
        shards = tuple(Shard(**shard) for shard in split["shards"])
        fields[name] = Split(**{**split, "shards": shards})
    for name in ("before", "near_duplicates"):
        # Absent in data of earlier versions, where the default applies.
        value = fields.pop(name, None)
        if value is not None:
            fields[name] = tuple(value)
    return Manifest(**fields)


def _check_values(manifest: Manifest) -> None:
    """Raises ValueError for a value that no data has, before it is computed with."""
    if manifest.dtype not in DTYPES:
        raise ValueError(f"dtype is {manifest.dtype!r}")
    _check_count("vocab_size", manifest.vocab_size)
    _check_count("eos_id", manifest.eos_id)
    for number in manifest.before or ():
        _check_count("before", number)
    for shard in manifest.shards():
        _check_count("offset", shard.offset)
        _check_count("tokens", shard.tokens)
        _check_blocks(shard, manifest.dtype)


def _check_blocks(shard: Shard, dtype: str) -> None:
    count = -(-shard.size(dtype) // BLOCK)
    # Data of earlier versions has no digests.
    allowed = (0, count * DIGITS)
    if not isinstance(shard.blocks, str) or len(shard.blocks) not in allowed:
        raise ValueError(f"blocks of {shard.file!r} are not {count} digests")


def _check_count(name: str, value: Any) -> None:
    # A bool is an int, and no count.
    if type(value) is not int or value < 0:
        raise ValueError(f"{name} is {value!r}")


def _check_tokenizer(path: epath.Path, manifest: Manifest, remedy: str) -> None:
    """Raises ConfigError unless the file is the one that encoded the data."""
    if not path.exists():
        raise ConfigError(f"{shown(path)} is missing: {remedy}")
    files.check_plain(path)
    recorded = manifest.tokenizer_digest
    if recorded is None:
        return  # data of earlier versions
    if recorded != files.digest(path):
        raise ConfigError(f"{shown(path)} was changed after it was made: {remedy}")


def _check_lengths(directory: epath.Path, manifest: Manifest, remedy: str) -> None:
    """Raises ConfigError unless every shard is there and long enough."""
    shards = manifest.shards()
    paths = [shard_path(directory, shard) for shard in shards]
    # At the same time, as an object store takes a while to answer each.
    with concurrent.futures.ThreadPoolExecutor(REQUESTS) as pool:
        lengths = pool.map(_length, paths)
        for path, shard, length in zip(paths, shards, lengths, strict=True):
            expected = shard.offset + shard.size(manifest.dtype)
            if length < expected:
                raise ConfigError(
                    f"{shown(path)} is missing or shorter than the manifest says: {remedy}"
                )


def _length(path: epath.Path) -> int:
    """Bytes of a file; 0 where there is none."""
    try:
        return path.stat().length
    except (FileNotFoundError, NotADirectoryError):
        return 0


def _warn_of_old_data(directory: epath.Path, remote: bool) -> None:
    """Warns, once per process, of data that an earlier version made."""
    comparison = (
        "are compared with their SHA-256, small ones now and large ones while it trains"
    )
    if remote:
        comparison = "are in a bucket and are not compared"
    warn_once(
        f"{shown(directory)} was made before framing and digests of blocks were recorded:"
        " nothing stands before a document, its end-of-document token after it;"
        f" its files {comparison}"
    )


def read_ids(file: epath.PathLike, offset: int, count: int, dtype: str) -> np.ndarray:
    """`count` little-endian ids of `file`, from `offset` bytes after its start.

    Raises:
      ConfigError: the file is missing or too short.
      SparsecodError: the disk cannot be read now.
    """
    little_endian = np.dtype(dtype).newbyteorder("<")
    stop = offset + count * little_endian.itemsize
    return np.frombuffer(read_bytes(file, offset, stop), little_endian)


class Windows:
    """Windows of seq_len + 1 tokens at stride seq_len over one split.

    It is a random-access source for Grain. The shards form one sequence of tokens, of
    which only a tail shorter than a window is left out. Consecutive windows share a token:
    the last target of one is the first input of the next.

    Reading a window raises ConfigError where a shard differs from what was made.

    Args:
      directory: of the data.
      split: one of those of the manifest.
      seq_len: inputs of a window, which has one token more.
    """

    def __init__(
        self, directory: epath.Path, manifest: Manifest, split: Split, seq_len: int
    ):
        shards = split.shards
        self.seq_len = seq_len
        self._shards = shards
        self._files = [os.fspath(shard_path(directory, shard)) for shard in shards]
        self._dtype = manifest.dtype
        # Where each shard begins in the sequence, and where the last one ends.
        self._starts = [0]
        for shard in shards:
            self._starts.append(self._starts[-1] + shard.tokens)
        self._blocks = Blocks(directory, shards, manifest.dtype, manifest.vocab_size)

    def watch(self) -> None:
        """Compares large data on this machine as a whole, in a thread."""
        if self._blocks.size > SMALL and not self._blocks.remote:
            self._blocks.watch()

    @property
    def total_tokens(self) -> int:
        """Those of the split, the tail included."""
        return self._starts[-1]

    def __len__(self) -> int:
        # The last token of a window is a target only.
        return (self.total_tokens - 1) // self.seq_len

    def __getitem__(self, index) -> np.ndarray:
        """[seq_len + 1] int32."""
        start = int(index) * self.seq_len
        return self.tokens(start, start + self.seq_len + 1)

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Tokens start..stop-1 of the sequence (fewer at its end), int32."""
        pieces = []
        # From the shard that holds `start` to the one that holds `stop` - 1.
        first_shard = bisect.bisect(self._starts, start) - 1
        for number in range(first_shard, len(self._shards)):
            begin = self._starts[number]
            if begin >= stop:
                break
            size = self._shards[number].tokens
            first = max(start - begin, 0)
            last = min(stop - begin, size)
            piece = self._read(number, first, last)
            pieces.append(piece)
        return np.concatenate(pieces).astype(np.int32)

    def _read(self, number: int, first: int, last: int) -> np.ndarray:
        """Ids first..last-1 of a shard, compared with what was made."""
        width = np.dtype(self._dtype).itemsize
        start = first * width
        self._blocks.check(number, start, last * width)
        offset = self._shards[number].offset + start
        count = last - first
        return read_ids(self._files[number], offset, count, self._dtype)
