"""How do tokens lie on disk?

A data directory holds `manifest.json` and token shards, .npy arrays of uint16 or uint32. A shard is a run of tokens in a file, so that
raw token files made elsewhere can be named where they are.
"""

import dataclasses
import functools
import hashlib
import json

import numpy as np
from etils import epath

from sparsecod_jax.errors import ConfigError

MANIFEST = "manifest.json"


@dataclasses.dataclass(frozen=True)
class Shard:
    """`tokens` little-endian ids in `file` (relative to the data directory, or absolute), `offset` bytes from its start."""

    file: str
    offset: int
    tokens: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Split:
    """The documents of one split."""

    documents: int
    tokens: int
    text_bytes: int  # as UTF-8; 0 where only tokens were given
    unigram_entropy: float  # nats a token, by the split's own token frequencies
    shards: tuple[Shard, ...]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What `sparsecod data` made, and from what."""

    request: dict
    tokenizer: str
    vocab_size: int
    eos_id: int
    dtype: str
    train: Split
    validation: Split
    dropped_documents: int

    @property
    def fingerprint(self) -> str:
        """A hash of the tokens and their order; the place of the files is no part of it."""
        shards = [[[s.sha256, s.tokens] for s in split.shards] for _, split in self.splits()]
        content = [self.tokenizer, self.vocab_size, self.eos_id, self.dtype, shards]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def describe(self) -> str:
        """One line for people."""
        sizes = [f"{name} {split.documents:,} documents, {split.tokens:,} tokens" for name, split in self.splits()]
        return f"{'; '.join(sizes)}; {self.dropped_documents:,} near-duplicates dropped; fingerprint {self.fingerprint}"

    def splits(self) -> list[tuple[str, Split]]:
        return [("train", self.train), ("validation", self.validation)]

    def to_json(self) -> str:
        """The file's text: all fields, the fingerprint, and a checksum over both."""
        values = {**dataclasses.asdict(self), "fingerprint": self.fingerprint}
        return json.dumps({**values, "checksum": _checksum(values)}, indent=1)


def entropy(counts: np.ndarray) -> float:
    """Entropy in nats of the distribution that `counts` is proportional to."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def _checksum(values: dict) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _split(values: dict) -> Split:
    return Split(**{**values, "shards": tuple(Shard(**shard) for shard in values["shards"])})


def read_manifest(directory: epath.Path, command: str) -> Manifest:
    """Reads a data directory's manifest and checks that every shard has its size.

    Args:
      directory: made by `sparsecod data`.
      command: how to make it, for the message when it is absent.

    Raises:
      ConfigError: the directory is absent, damaged or incomplete.
    """
    path = directory / MANIFEST
    if not path.exists():
        raise ConfigError(f"there is no data in {directory}: run `{command}`")
    try:
        values = json.loads(path.read_bytes())
        checksum = values.pop("checksum")
        intact = checksum == _checksum(values)
        del values["fingerprint"]
        manifest = Manifest(**{**values, "train": _split(values["train"]), "validation": _split(values["validation"])})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} can't be read ({error}): delete {directory} and run `{command}`") from error
    if not intact:
        raise ConfigError(f"{path} was changed after it was made: delete {directory} and run `{command}`")
    for shard in (*manifest.train.shards, *manifest.validation.shards):
        file, end = directory / shard.file, shard.offset + shard.tokens * np.dtype(manifest.dtype).itemsize
        if not file.exists() or file.stat().length < end:
            raise ConfigError(f"{file} is missing or shorter than the manifest says: delete {directory} and run `{command}`")
    return manifest


class Windows:
    """Windows of seq_len + 1 tokens at stride seq_len over one split, as a random-access source for Grain.

    The shards form one stream; only a tail shorter than a window is left out.
    """

    def __init__(self, directory: epath.Path, manifest: Manifest, split: Split, seq_len: int):
        self._directory, self._dtype, self._shards = str(directory), manifest.dtype, split.shards
        self._starts = np.cumsum([0, *(shard.tokens for shard in split.shards)])
        self.seq_len = seq_len

    @property
    def total_tokens(self) -> int:
        return int(self._starts[-1])

    def __len__(self) -> int:
        return (self.total_tokens - 1) // self.seq_len

    def __getitem__(self, index) -> np.ndarray:
        start = int(index) * self.seq_len
        return self.tokens(start, start + self.seq_len + 1)

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Tokens start..stop-1 of the stream (fewer at its end), int32."""
        first = int(np.searchsorted(self._starts, start, "right")) - 1
        pieces = []
        for number in range(first, len(self._shards)):
            if self._starts[number] >= stop:
                break
            local = slice(max(start - self._starts[number], 0), stop - self._starts[number])
            pieces.append(self._open(number)[local])
        return np.concatenate(pieces).astype(np.int32)

    def _open(self, number: int) -> np.ndarray:
        shard = self._shards[number]
        return _map(str(epath.Path(self._directory) / shard.file), shard.offset, shard.tokens, self._dtype)


@functools.lru_cache(maxsize=4096)
def _map(file: str, offset: int, tokens: int, dtype: str) -> np.ndarray:
    return np.memmap(file, dtype=np.dtype(dtype).newbyteorder("<"), mode="r", offset=offset, shape=(tokens,))
