"""How do tokens lie on disk?

A data directory holds `manifest.json` and token shards, .npy arrays of uint16 or uint32. A shard is a run of tokens in a file, so that
raw token files made elsewhere can be named where they are. Local files are mapped; of objects in a store only what is asked for is read,
so that each host loads its own windows.
"""

import bisect
import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import os

import numpy as np
from etils import epath

from sparsecod_jax import files
from sparsecod_jax.config import Experiment
from sparsecod_jax.data.tokenizer import TOKENIZER
from sparsecod_jax.errors import ConfigError

MANIFEST = "manifest.json"
REQUESTS = 32  # at a time, to a store that answers after tens of milliseconds


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


def prepare_arguments(experiment: Experiment) -> list[str]:
    """What `sparsecod` is told to make the experiment's data directory."""
    cfg = experiment.data
    size = [f"--vocab_size={experiment.model.vocab_size}"] if cfg.tokenizer == "bpe" else []
    return ["data", f"--source={cfg.source}", f"--tokenizer={cfg.tokenizer}", *size, f"--out={cfg.path}"]


def prepare_command(experiment: Experiment) -> str:
    """The command that makes the experiment's data directory, for people."""
    return " ".join(["sparsecod", *prepare_arguments(experiment)])


def read_manifest(directory: epath.Path, command: str) -> Manifest:
    """Reads a data directory's manifest and checks that every shard has its size.

    Args:
      directory: made by `sparsecod data`.
      command: how to make it, for the message when it is absent.

    Raises:
      ConfigError: the directory is absent, damaged or incomplete.
    """
    directory = files.absolute(directory)
    path = directory / MANIFEST
    if not path.exists():
        raise ConfigError(f"there is no data in {directory}: run `{command}`")
    files.check_plain(path)
    try:
        values = json.loads(path.read_bytes())
        checksum = values.pop("checksum")
        intact = checksum == _checksum(values)
        del values["fingerprint"]
        manifest = Manifest(**{**values, "train": _split(values["train"]), "validation": _split(values["validation"])})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path} can't be read ({error}): delete {directory} and run `{command}`") from error
    if not intact:
        raise ConfigError(f"{path} was changed after it was made: delete {directory} and run `{command}`")
    if not (directory / TOKENIZER).exists():
        raise ConfigError(f"{directory / TOKENIZER} is missing: delete {directory} and run `{command}`")
    shards = (*manifest.train.shards, *manifest.validation.shards)
    places = [_place(directory, shard) for shard in shards]
    with concurrent.futures.ThreadPoolExecutor(REQUESTS) as pool:
        for place, shard, length in zip(places, shards, pool.map(_length, places), strict=True):
            if length < shard.offset + shard.tokens * np.dtype(manifest.dtype).itemsize:
                raise ConfigError(f"{place} is missing or shorter than the manifest says: delete {directory} and run `{command}`")
    return manifest


def _place(directory: epath.Path, shard: Shard) -> epath.Path:
    return epath.Path(shard.file) if files.is_remote(shard.file) else directory / shard.file


def _length(file: epath.Path) -> int:
    try:
        return file.stat().length
    except FileNotFoundError:
        return 0


def read_ids(file: epath.PathLike, offset: int, count: int, dtype: str) -> np.ndarray:
    """`count` little-endian ids of `file`, from `offset` bytes after its start."""
    little_endian = np.dtype(dtype).newbyteorder("<")
    place = slice(offset, offset + count * little_endian.itemsize)
    if files.is_remote(file):
        return np.frombuffer(files.read_range(file, place.start, place.stop), little_endian)
    return _map(os.fspath(file))[place].view(little_endian)


@functools.lru_cache(maxsize=4096)
def _map(file: str) -> np.ndarray:
    return np.memmap(file, dtype=np.uint8, mode="r")


class Windows:
    """Windows of seq_len + 1 tokens at stride seq_len over one split, as a random-access source for Grain.

    The shards form one stream; only a tail shorter than a window is left out.
    """

    def __init__(self, directory: epath.Path, manifest: Manifest, split: Split, seq_len: int):
        self._places = [os.fspath(_place(directory, shard)) for shard in split.shards]
        self._dtype, self._shards = manifest.dtype, split.shards
        self._starts = np.cumsum([0, *(shard.tokens for shard in split.shards)]).tolist()
        self.seq_len = seq_len

    @property
    def total_tokens(self) -> int:
        return self._starts[-1]

    def __len__(self) -> int:
        return (self.total_tokens - 1) // self.seq_len

    def __getitem__(self, index) -> np.ndarray:
        start = int(index) * self.seq_len
        return self.tokens(start, start + self.seq_len + 1)

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Tokens start..stop-1 of the stream (fewer at its end), int32."""
        pieces, width = [], np.dtype(self._dtype).itemsize
        for number in range(bisect.bisect(self._starts, start) - 1, len(self._shards)):
            if self._starts[number] >= stop:
                break
            first, shard = max(start - self._starts[number], 0), self._shards[number]
            last = min(stop - self._starts[number], shard.tokens)
            pieces.append(read_ids(self._places[number], shard.offset + first * width, last - first, self._dtype))
        return np.concatenate(pieces).astype(np.int32)
