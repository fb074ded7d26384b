"""How do tokens lie on disk?

A data directory holds `manifest.json` and token shards, .npy arrays of uint16 or uint32. A shard is
a run of tokens in a file, so that raw token files made elsewhere can be named where they are. Only
what is asked for is read, so that each host loads its own windows, and `blocks` compares it with
what was made.
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
    place,
    read_bytes,
)
from sparsecod_jax.data.tokenizer import TOKENIZER
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.shell.shown import shown, warn_once
from sparsecod_jax.storage import files

MANIFEST = "manifest.json"
DTYPES = ("uint16", "uint32")
REQUESTS = 32  # at a time, to a store that answers after tens of milliseconds


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
    dropped_documents: int  # near-duplicates of others
    before: tuple[int, ...] | None = (
        None  # ids with which each document begins; None in data of earlier versions, which has none
    )
    near_duplicates: tuple[str, ...] = ()  # the beginnings of some
    duplicates_forgotten: bool = (
        False  # memory was full, so that those of later documents were not looked for
    )
    left_out: dict[str, Any] = dataclasses.field(
        default_factory=dict
    )  # by reason: how often, and examples
    tokenizer_digest: str | None = (
        None  # of tokenizer.json; None in data of earlier versions
    )
    round_trip: dict[str, Any] | None = (
        None  # whether ids give the text back, on a sample; None where it was not looked at
    )

    @property
    def fingerprint(self) -> str:
        """A hash of the tokens and their order; the place of the files is no part of it."""
        shards = [
            [[s.sha256, s.tokens] for s in split.shards] for _, split in self.splits()
        ]
        content = [self.tokenizer, self.vocab_size, self.eos_id, self.dtype, shards]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def describe(self) -> str:
        """One line for people."""
        sizes = [
            f"{name} {split.documents:,} documents, {split.tokens:,} tokens"
            for name, split in self.splits()
        ]
        return f"{'; '.join(sizes)}; {self.dropped_documents:,} near-duplicates dropped; fingerprint {self.fingerprint}"

    def framing(self) -> dict[str, Any]:
        """What stands around a text in this data, for the record of a run."""
        before = list(self.before or ())
        return {
            "eos_id": self.eos_id,
            "start_id": [self.eos_id, *before][-1],
            "before": before,
        }

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
    return Split(
        **{**values, "shards": tuple(Shard(**shard) for shard in values["shards"])}
    )


def prepare_arguments(experiment: Experiment) -> list[str]:
    """What `sparsecod` is told to make the experiment's data directory."""
    cfg = experiment.data
    size = (
        [f"--vocab_size={experiment.model.vocab_size}"]
        if cfg.tokenizer == "bpe"
        else []
    )
    return [
        "data",
        f"--source={cfg.source}",
        f"--tokenizer={cfg.tokenizer}",
        *size,
        f"--out={cfg.path}",
    ]


def prepare_command(experiment: Experiment) -> str:
    """The command that makes the experiment's data directory, for people."""
    return " ".join(["sparsecod", *prepare_arguments(experiment)])


def read_manifest(directory: epath.Path, command: str) -> Manifest:
    """Reads a data directory's manifest; checks that every shard has its size and, where they are small, its content.

    Args:
      directory: made by `sparsecod data`.
      command: how to make it, for the message when it is absent.

    Raises:
      ConfigError: the directory is absent, damaged or incomplete.
    """
    directory = files.absolute(directory)
    path = directory / MANIFEST
    mend = f"copy it again from where it was made, or make the data in another folder, as `{command}` does"
    if not path.exists():
        raise ConfigError(f"there is no data in {shown(directory)}: run `{command}`")
    files.check_plain(path)
    manifest = _parse(path, mend)
    if not (directory / TOKENIZER).exists():
        raise ConfigError(f"{shown(directory / TOKENIZER)} is missing: {mend}")
    files.check_plain(directory / TOKENIZER)
    if (
        manifest.tokenizer_digest is not None
        and manifest.tokenizer_digest != files.digest(directory / TOKENIZER)
    ):
        raise ConfigError(
            f"{shown(directory / TOKENIZER)} was changed after it was made: {mend}"
        )
    shards = (*manifest.train.shards, *manifest.validation.shards)
    places = [place(directory, shard) for shard in shards]
    with concurrent.futures.ThreadPoolExecutor(REQUESTS) as pool:
        for file, shard, length in zip(
            places, shards, pool.map(_length, places), strict=True
        ):
            if length < shard.offset + shard.tokens * np.dtype(manifest.dtype).itemsize:
                raise ConfigError(
                    f"{shown(file)} is missing or shorter than the manifest says: {mend}"
                )
    blocks = Blocks(directory, shards, manifest.dtype, manifest.vocab_size)
    if blocks.size <= SMALL and not blocks.remote:
        blocks.check_all()
    _say_what_is_not_recorded(directory, manifest, blocks.remote)
    return manifest


def _parse(path: epath.Path, mend: str) -> Manifest:
    try:
        values = json.loads(path.read_bytes())
        checksum = values.pop("checksum")
        intact = checksum == _checksum(values)
        del values["fingerprint"]
        for split in ("train", "validation"):
            values[split] = _split(values[split])
        for name in ("before", "near_duplicates"):
            values[name] = (
                tuple(values[name])
                if values.get(name) is not None
                else Manifest.__dataclass_fields__[name].default
            )
        manifest = Manifest(**values)
        _check_values(manifest)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"{shown(path)} can't be read as a manifest of data ({shown(error)}): {mend}"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"{shown(path)} can't be read ({error.strerror}): {mend}"
        ) from error
    if not intact:
        raise ConfigError(f"{shown(path)} was changed after it was made: {mend}")
    return manifest


def _check_values(manifest: Manifest) -> None:
    """Raises ValueError where a value can't be one of data, as what follows computes with it."""
    if manifest.dtype not in DTYPES:
        raise ValueError(f"dtype is {manifest.dtype!r}")
    _check_numbers(
        vocab_size=(manifest.vocab_size,),
        eos_id=(manifest.eos_id,),
        before=manifest.before or (),
    )
    for shard in (*manifest.train.shards, *manifest.validation.shards):
        _check_numbers(offset=(shard.offset,), tokens=(shard.tokens,))
        count = -(-shard.tokens * np.dtype(manifest.dtype).itemsize // BLOCK)
        if not isinstance(shard.blocks, str) or len(shard.blocks) not in (
            0,
            count * DIGITS,
        ):
            raise ValueError(f"blocks of {shard.file!r} are not {count} digests")


def _check_numbers(**numbers: tuple[Any, ...]) -> None:
    for name, values in numbers.items():
        for value in values:
            if type(value) is not int or value < 0:
                raise ValueError(f"{name} is {value!r}")


def _say_what_is_not_recorded(
    directory: epath.Path, manifest: Manifest, remote: bool
) -> None:
    """Of data that an earlier version made, once a process."""
    if manifest.before is None:
        compared = "are compared with their SHA-256, small ones now and large ones while it trains"
        warn_once(
            f"{shown(directory)} was made before framing and digests of blocks were recorded: nothing stands before a document, its"
            f" end-of-document token after it; its files {'lie in a bucket and are not compared' if remote else compared}"
        )


def _length(file: epath.Path) -> int:
    try:
        return file.stat().length
    except (FileNotFoundError, NotADirectoryError):
        return 0


def read_ids(file: epath.PathLike, offset: int, count: int, dtype: str) -> np.ndarray:
    """`count` little-endian ids of `file`, from `offset` bytes after its start."""
    little_endian = np.dtype(dtype).newbyteorder("<")
    return np.frombuffer(
        read_bytes(file, offset, offset + count * little_endian.itemsize), little_endian
    )


class Windows:
    """Windows of seq_len + 1 tokens at stride seq_len over one split, as a random-access source for Grain.

    The shards form one stream; only a tail shorter than a window is left out. Reading one raises ConfigError where a shard differs
    from what was made.
    """

    def __init__(
        self, directory: epath.Path, manifest: Manifest, split: Split, seq_len: int
    ):
        self._places = [os.fspath(place(directory, shard)) for shard in split.shards]
        self._dtype, self._shards = manifest.dtype, split.shards
        self._starts = np.cumsum(
            [0, *(shard.tokens for shard in split.shards)]
        ).tolist()
        self._blocks = Blocks(
            directory, split.shards, manifest.dtype, manifest.vocab_size
        )
        self.seq_len = seq_len

    def watch(self) -> None:
        """Has large data on this machine compared as a whole, beside what is read."""
        if self._blocks.size > SMALL and not self._blocks.remote:
            self._blocks.watch()

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
            self._blocks.check(number, first * width, last * width)
            pieces.append(
                read_ids(
                    self._places[number],
                    shard.offset + first * width,
                    last - first,
                    self._dtype,
                )
            )
        return np.concatenate(pieces).astype(np.int32)
