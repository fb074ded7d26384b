"""How are token files made elsewhere read?

The paper's tool writes `part-NNNNN.npy`: little-endian uint16 ids without a header, each document ending in the end-of-document id.
They stay where they are and the manifest names them; only the tokenizer is copied. One contiguous range of whole documents, at a place
drawn from the split seed, is held out. Near-duplicates are not looked for here: the text is not at hand.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator

import numpy as np
from etils import epath

from sparsecod_jax.data import tokenizer
from sparsecod_jax.data.blocks import Shard, digests
from sparsecod_jax.data.store import MANIFEST, Manifest, Split, entropy, read_ids
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.shell.shown import shown
from sparsecod_jax.storage import files

PARTS = "part-*.npy"
NUMPY_MAGIC = b"\x93NUMPY"
BYTES_PER_ID = 2
CHUNK = 2**24  # ids in memory at once
TELLING = 64  # ids of which every second one would hardly be 0 by chance


def is_token_folder(source: epath.Path) -> bool:
    """Whether `source` is a folder of raw part files."""
    return source.is_dir() and any(source.glob(PARTS))


def index(request, directory: epath.Path, begin: Callable[[], epath.Path]) -> None:
    """Makes a manifest over the part files of `request.source`; `directory` gets it and a copy of the tokenizer.json
    that `request` must name.

    Args:
      begin: takes the directory, when all that can be refused was looked at.

    Raises:
      ConfigError: no tokenizer is named, or the files are not raw uint16 ids of it.
    """
    if request.tokenizer in ("bpe", "bytes"):
        raise ConfigError(
            f"{request.source} holds token ids: name the tokenizer.json that made them with --tokenizer"
        )
    unused = {
        "text_field": "text",
        "split": None,
        "separator": None,
        "dedup": "near",
        "max_documents": None,
        "max_tokens": None,
    }
    if given := [
        f"--{name}"
        for name, default in unused.items()
        if getattr(request, name) != default
    ]:
        raise ConfigError(
            f"{request.source} holds token ids, for which {', '.join(given)} mean nothing: leave them out"
        )
    encoder = tokenizer.load(files.absolute(request.tokenizer), request.eos_id)
    parts = {
        part: _size(part, encoder)
        for part in sorted(files.absolute(request.source).glob(PARTS))
    }
    chosen = list(parts)[np.random.default_rng(request.split_seed).integers(len(parts))]
    start, stop = _held_out(parts, chosen, encoder.eos_id, request)
    train, validation = [], []
    for part, size in parts.items():
        cuts = (
            [(0, start, train), (start, stop, validation), (stop, size, train)]
            if part == chosen
            else [(0, size, train)]
        )
        for first, last, split in cuts:
            if last > first:
                split.append((part, first, last))
    begin()
    encoder.save(directory)
    manifest = Manifest(
        request=dataclasses.asdict(request),
        tokenizer="tokenizer.json",
        vocab_size=encoder.vocab_size,
        eos_id=encoder.eos_id,
        dtype="uint16",
        train=_split(train, encoder.eos_id),
        validation=_split(validation, encoder.eos_id),
        dropped_documents=0,
        before=_before(encoder, chosen, parts[chosen]),
        tokenizer_digest=files.digest(directory / tokenizer.TOKENIZER),
    )
    files.write(directory / MANIFEST, manifest.to_json().encode())


def _size(part: epath.Path, encoder: tokenizer.Tokenizer) -> int:
    """The number of ids in a part, after a look at all of them."""
    files.check_plain(part)
    with part.open("rb") as file:
        if file.read(len(NUMPY_MAGIC)) == NUMPY_MAGIC:
            raise ConfigError(
                f"{shown(part)} has a numpy header, raw ids were expected: write it with ndarray.tofile"
            )
    length = part.stat().length
    if length % BYTES_PER_ID or not length:
        raise ConfigError(
            f"{shown(part)} is empty or cut off in the middle of an id: copy it again"
        )
    for _, chunk in _chunks(part, 0, length // BYTES_PER_ID):
        if (
            chunk.size >= TELLING
            and (chunk[1::2] <= (encoder.vocab_size - 1) >> 16).all()
        ):
            raise ConfigError(
                f"{shown(part)} holds ids of 32 bits, raw ids of 16 were expected: convert it with ndarray.astype('<u2')"
            )
        if (highest := chunk.max()) >= encoder.vocab_size:
            raise ConfigError(
                f"{shown(part)} holds id {highest} but the tokenizer ends at {encoder.vocab_size - 1}: name the right --tokenizer"
            )
    return length // BYTES_PER_ID


def _chunks(
    part: epath.Path, first: int, last: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Ids first..last-1 of a part, each chunk with its place in the part."""
    for start in range(first, last, CHUNK):
        yield (
            start,
            read_ids(part, start * BYTES_PER_ID, min(CHUNK, last - start), "uint16"),
        )


def _held_out(
    parts: dict[epath.Path, int], chosen: epath.Path, eos_id: int, request
) -> tuple[int, int]:
    """Token range of whole documents in the chosen part, about the asked share of all tokens."""
    ends = np.concatenate(
        [
            first + np.flatnonzero(chunk == eos_id) + 1
            for first, chunk in _chunks(chosen, 0, parts[chosen])
        ]
    )
    size = request.validation_fraction * sum(parts.values())
    if ends.size < 2:
        raise ConfigError(
            f"a part of {request.source} has fewer than two documents ending in id {eos_id}: check --eos_id"
        )
    latest = max(parts[chosen] - size, 0)
    first = int(
        np.searchsorted(
            ends, np.random.default_rng([request.split_seed, 1]).uniform(0, latest)
        )
    )
    first = min(first, ends.size - 2)
    last = min(
        max(int(np.searchsorted(ends, ends[first] + size)), first + 1), ends.size - 1
    )
    return int(ends[first]), int(ends[last])


def _before(
    encoder: tokenizer.Tokenizer, part: epath.Path, size: int
) -> tuple[int, ...]:
    """What documents begin with: the tokens that the tokenizer puts there, if all documents of this part do, else nothing."""
    before, _ = tokenizer.framing(encoder.inner)
    firsts, previous = [], encoder.eos_id
    for _, chunk in _chunks(part, 0, size):
        shifted = np.concatenate([[previous], chunk[:-1]])
        firsts.append(chunk[shifted == encoder.eos_id])
        previous = chunk[-1]
    begun = len(before) == 1 and bool((np.concatenate(firsts) == before[0]).all())
    return before if begun else ()


def _split(ranges: list[tuple[epath.Path, int, int]], eos_id: int) -> Split:
    shards, frequencies = [], np.zeros(2**16, np.int64)
    for part, first, last in ranges:
        digest, blocks = hashlib.sha256(), []
        for _, chunk in _chunks(part, first, last):
            digest.update(content := chunk.tobytes())
            blocks.append(digests(content))
            frequencies += np.bincount(chunk, minlength=2**16)
        shards.append(
            Shard(
                str(part),
                first * BYTES_PER_ID,
                last - first,
                digest.hexdigest(),
                "".join(blocks),
            )
        )
    return Split(
        int(frequencies[eos_id]),
        int(frequencies.sum()),
        0,
        entropy(frequencies),
        tuple(shards),
    )
