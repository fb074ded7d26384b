"""How are token files made elsewhere read?

Raw token files: the paper's tool writes `part-NNNNN.npy`, little-endian uint16 ids without
a header, where each document ends in the end-of-document id. They stay where they are and
the manifest names them; only the tokenizer is copied. One contiguous range of whole
documents, at a position drawn from the split seed, is held out. Near-duplicates are not
removed, as the text is not available.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator

import numpy as np
from etils import epath

from sparsecod_jax.data import tokenizer
from sparsecod_jax.data.blocks import Shard, digests
from sparsecod_jax.data.request import Request
from sparsecod_jax.data.store import MANIFEST, Manifest, Split, entropy, read_ids
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.shell.shown import shown
from sparsecod_jax.storage import files

PARTS = "part-*.npy"
NUMPY_MAGIC = b"\x93NUMPY"  # at the beginning of a file with a header
BYTES_PER_ID = 2
CHUNK = 2**24  # ids in memory at once
# Ids from which it can be told that every second one is 0, which is hardly chance.
TELLING = 64
# Options that concern text.
UNUSED = (
    "text_field",
    "split",
    "separator",
    "dedup",
    "max_documents",
    "max_tokens",
)

Range = tuple[epath.Path, int, int]  # ids start..stop-1 of a part


def is_token_folder(source: epath.Path) -> bool:
    """Whether `source` is a folder of raw part files."""
    return source.is_dir() and any(source.glob(PARTS))


def index(
    request: Request, directory: epath.Path, begin: Callable[[], epath.Path]
) -> None:
    """Makes a manifest over the part files of `request.source`.

    Args:
      request: must name the tokenizer.json that made the ids.
      directory: gets the manifest and a copy of the tokenizer.
      begin: occupies the directory, once all that can be refused was checked.

    Raises:
      ConfigError: no tokenizer is named, or the files are not raw uint16 ids of it.
    """
    _check_options(request)
    encoder = tokenizer.load(files.absolute(request.tokenizer), request.eos_id)
    paths = sorted(files.absolute(request.source).glob(PARTS))
    sizes = {part: _checked_size(part, encoder) for part in paths}
    # The validation split is a range of one part.
    rng = np.random.default_rng(request.split_seed)
    chosen = paths[rng.integers(len(paths))]
    held_out = _held_out(sizes, chosen, encoder.eos_id, request)
    train, validation = _ranges(sizes, chosen, held_out)
    # Nothing was written so far.
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
        before=_before(encoder, chosen, sizes[chosen]),
        tokenizer_digest=files.digest(directory / tokenizer.TOKENIZER),
    )
    files.write(directory / MANIFEST, manifest.to_json().encode())


def _check_options(request: Request) -> None:
    """Refuses options that would silently have no effect."""
    if request.tokenizer in ("bpe", "bytes"):
        raise ConfigError(
            f"{request.source} holds token ids:"
            " name the tokenizer.json that made them with --tokenizer"
        )
    defaults = {field.name: field.default for field in dataclasses.fields(Request)}
    given = []
    for name in UNUSED:
        if getattr(request, name) != defaults[name]:
            given.append(f"--{name}")
    if given:
        raise ConfigError(
            f"{request.source} holds token ids, for which {', '.join(given)} mean nothing:"
            " leave them out"
        )


def _checked_size(part: epath.Path, encoder: tokenizer.Tokenizer) -> int:
    """The number of ids in a part, all of which are checked."""
    files.check_plain(part)
    with part.open("rb") as file:
        if file.read(len(NUMPY_MAGIC)) == NUMPY_MAGIC:
            raise ConfigError(
                f"{shown(part)} has a numpy header, raw ids were expected:"
                " write it with ndarray.tofile"
            )
    length = part.stat().length
    if length == 0 or length % BYTES_PER_ID:
        raise ConfigError(
            f"{shown(part)} is empty or cut off in the middle of an id: copy it again"
        )
    size = length // BYTES_PER_ID
    for _, chunk in _chunks(part, 0, size):
        _check_ids(part, chunk, encoder.vocab_size)
    return size


def _check_ids(part: epath.Path, chunk: np.ndarray, vocab_size: int) -> None:
    """Refuses ids that the tokenizer does not have, or of another width."""
    # Of 32-bit ids every second one is an upper half, which is 0 for most vocabularies.
    highest_upper_half = (vocab_size - 1) >> 16
    if chunk.size >= TELLING and (chunk[1::2] <= highest_upper_half).all():
        raise ConfigError(
            f"{shown(part)} holds ids of 32 bits, raw ids of 16 were expected:"
            " convert it with ndarray.astype('<u2')"
        )
    highest = chunk.max()
    if highest >= vocab_size:
        raise ConfigError(
            f"{shown(part)} holds id {highest} but the tokenizer ends at {vocab_size - 1}:"
            " name the right --tokenizer"
        )


def _chunks(
    part: epath.Path, start: int, stop: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Ids start..stop-1 of a part, in chunks with their positions in the part."""
    for position in range(start, stop, CHUNK):
        size = min(CHUNK, stop - position)
        yield position, read_ids(part, position * BYTES_PER_ID, size, "uint16")


def _held_out(
    sizes: dict[epath.Path, int], chosen: epath.Path, eos_id: int, request: Request
) -> tuple[int, int]:
    """Start and stop of whole documents in the chosen part.

    They are about the requested share of the tokens of all parts.

    Args:
      sizes: how many ids each part has.
      chosen: the part.
    """
    ends = _document_ends(chosen, sizes[chosen], eos_id)
    if ends.size < 2:
        raise ConfigError(
            f"a part of {request.source} has fewer than two documents ending in id {eos_id}:"
            " check --eos_id"
        )
    every_id = sum(sizes.values())
    wanted = request.validation_fraction * every_id
    latest = max(sizes[chosen] - wanted, 0)
    rng = np.random.default_rng([request.split_seed, 1])
    # The range begins at the end of one document and stops at that of a later one. Both
    # exist, as the part has two documents.
    earliest_start = rng.uniform(0, latest)
    first = int(np.searchsorted(ends, earliest_start))
    first = min(first, ends.size - 2)
    earliest_stop = ends[first] + wanted
    last = int(np.searchsorted(ends, earliest_stop))
    last = max(last, first + 1)
    last = min(last, ends.size - 1)
    return int(ends[first]), int(ends[last])


def _document_ends(part: epath.Path, size: int, eos_id: int) -> np.ndarray:
    """The position after each end-of-document id of a part, ascending."""
    ends = []
    for position, chunk in _chunks(part, 0, size):
        in_chunk = np.flatnonzero(chunk == eos_id)
        ends.append(position + in_chunk + 1)
    return np.concatenate(ends)


def _ranges(
    sizes: dict[epath.Path, int], chosen: epath.Path, held_out: tuple[int, int]
) -> tuple[list[Range], list[Range]]:
    """The ranges of the training and of the validation split."""
    start, stop = held_out
    train = []
    for part, size in sizes.items():
        if part != chosen:
            train.append((part, 0, size))
            continue
        # The held-out range begins after a document, and may reach the end of the part.
        train.append((part, 0, start))
        if stop < size:
            train.append((part, stop, size))
    return train, [(chosen, start, stop)]


def _before(
    encoder: tokenizer.Tokenizer, part: epath.Path, size: int
) -> tuple[int, ...]:
    """The ids with which each document begins.

    They are the one that the tokenizer puts there, if all documents of this part begin
    with it, and otherwise none.
    """
    before, _ = tokenizer.framing(encoder.inner)
    if len(before) != 1:
        return ()
    # The file begins with a document, as if an end stood before it.
    previous = encoder.eos_id
    for _, chunk in _chunks(part, 0, size):
        preceding = np.concatenate([[previous], chunk[:-1]])
        begins_document = preceding == encoder.eos_id
        first_ids = chunk[begins_document]
        if (first_ids != before[0]).any():
            return ()
        previous = chunk[-1]
    return before


def _split(ranges: list[Range], eos_id: int) -> Split:
    """A split whose shards are these ranges, which are read for their digests."""
    shards = []
    frequencies = np.zeros(2**16, np.int64)
    for part, start, stop in ranges:
        sha256 = hashlib.sha256()
        block_digests = []
        for _, chunk in _chunks(part, start, stop):
            content = chunk.tobytes()
            sha256.update(content)
            block_digests.append(digests(content))
            frequencies += np.bincount(chunk, minlength=2**16)
        shard = Shard(
            file=str(part),
            offset=start * BYTES_PER_ID,
            tokens=stop - start,
            sha256=sha256.hexdigest(),
            blocks="".join(block_digests),
        )
        shards.append(shard)
    return Split(
        documents=int(frequencies[eos_id]),  # each ends with one
        tokens=int(frequencies.sum()),
        text_bytes=0,
        unigram_entropy=entropy(frequencies),
        shards=tuple(shards),
    )
