"""How does a source become token shards?

Documents are read in batches; near-duplicates are dropped, the rest is split by a seeded hash of its
text, so that the split does not depend on the order; of a single document the tail is held out. The
chosen text waits under `work/`, one file a batch and split, until the tokenizer (trained on the
training split where asked for) turns each into a shard. A finished file is never made again, so an
interrupted run goes on where it stopped.
"""

import concurrent.futures
import contextlib
import dataclasses
import fnmatch
import gzip
import hashlib
import io
import itertools
import json
import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import numpy as np
from etils import epath
from tqdm import tqdm

from sparsecod_jax.data import (
    blocks,
    dedup,
    raw,
    round_trip,
    sources,
    tokenizer,
    trial,
    workspace,
)
from sparsecod_jax.data.blocks import Shard
from sparsecod_jax.data.left_out import LeftOut
from sparsecod_jax.data.store import MANIFEST, Manifest, Split, entropy, read_manifest
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.shell.shown import shown
from sparsecod_jax.storage import files, records
from sparsecod_jax.storage.ownership import locked

SPLITS = ("train", "validation")
SOURCE = "source.json"  # sizes and times of the source's files when they were read, and a digest of the tokenizer
BATCH_CHARACTERS = 2**25
BYTES_A_TOKEN = 8  # at most, in the mean of a text: where reading stops for max_tokens
LOOKED_AT = 512  # documents of a split on which a tokenizer is tried
EXAMPLES = 20  # of near-duplicates in the manifest

Dedup = Literal["near", "exact", "off"]


@dataclasses.dataclass(frozen=True)
class Request:
    """What to make: `sparsecod data`'s options, see `sources` and `tokenizer` for the names."""

    source: str
    tokenizer: str = "bpe"
    vocab_size: int = 0  # of a trained BPE, 0 for other tokenizers
    eos_id: int | None = None  # where a tokenizer.json does not tell
    split_seed: int = 0
    validation_fraction: float = 0.05  # expected share of held-out documents
    text_field: str = "text"
    split: str | None = None  # of the source
    separator: str | None = None  # of the documents in a file of text
    dedup: Dedup = "near"
    max_documents: int | None = None  # that are read
    max_tokens: int | None = None  # of the training split

    def __post_init__(self):
        if self.tokenizer == "bpe" and self.vocab_size < 257:
            raise ConfigError(
                f"--vocab_size={self.vocab_size} can't hold the 256 bytes and an end of document: use 257 or more"
            )
        if not 0 < self.validation_fraction < 1:
            raise ConfigError(
                f"--validation_fraction={self.validation_fraction} is not between 0 and 1: try 0.05"
            )
        for name in ("max_documents", "max_tokens"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(
                    f"--{name}={value} is below 1: raise it, or leave it out"
                )
        if self.separator == "":
            raise ConfigError(
                "--separator is empty: name what stands between documents, or leave it out"
            )


def prepare(request: Request, out: str) -> Manifest:
    """Makes the data directory `out`, finishes an interrupted one, or finds it finished.

    Raises:
      ConfigError: the source or tokenizer is not usable, or `out` holds something else; that was left as it is.
      Fenced: another process makes `out`.
    """
    directory = files.absolute(out)
    command = f"sparsecod data --source={request.source} --out={out}"
    if (directory / MANIFEST).exists():
        manifest = read_manifest(directory, command)
        _check_same(directory, manifest.request, request)
        _say_what_changed(directory, request)
    else:
        workspace.check_free(directory)
        from_ids = not request.source.startswith("hf:") and raw.is_token_folder(
            files.absolute(request.source)
        )
        listed = _listing(request)

        def begin() -> epath.Path:
            work = workspace.begin(
                directory,
                dataclasses.asdict(request),
                lambda before: _check_can_go_on(directory, before, request),
            )
            records.write_record(
                directory / SOURCE,
                {"files": listed, "tokenizer": _tokenizer_digest(request)},
            )
            return work

        (raw.index if from_ids else _from_text)(request, directory, begin)
        manifest = read_manifest(directory, command)
    with locked(directory):
        workspace.clear(directory, manifest.request)
    return manifest


def _check_can_go_on(
    directory: epath.Path, before: dict[str, Any], request: Request
) -> None:
    _check_same(directory, before, request)
    if "dedup" not in before and any((directory / workspace.WORK).glob("*.hashes.npy")):
        raise ConfigError(
            f"{shown(directory)} was begun by an earlier version, whose unfinished work can't be used: choose another --out"
        )


def _check_same(
    directory: epath.Path, before: dict[str, Any], request: Request
) -> None:
    now = dataclasses.asdict(request)
    defaults = dataclasses.asdict(
        Request(request.source, "bytes")
    )  # for what earlier versions had no option
    changed = [
        f"{name} was {then!r}, is {now[name]!r}"
        for name in now
        if (then := before.get(name, defaults[name])) != now[name]
    ]
    if changed:
        raise ConfigError(
            f"{shown(directory)} holds data of another request ({shown('; '.join(changed))}): choose another --out"
        )


def _listing(request: Request) -> dict[str, list[int]]:
    """The source's files, of a folder of token files those alone."""
    listed = sources.listing(request.source)
    parts = {
        name: listed[name] for name in listed if fnmatch.fnmatchcase(name, raw.PARTS)
    }
    return parts or listed


def _tokenizer_digest(request: Request) -> str | None:
    """Of the file that --tokenizer names."""
    if request.tokenizer in ("bpe", "bytes"):
        return None
    return hashlib.sha256(
        trial.content(files.absolute(request.tokenizer)).encode()
    ).hexdigest()[:16]


def _say_what_changed(directory: epath.Path, request: Request) -> None:
    """What is else in source and tokenizer than when finished data was made from them, as far as that was recorded and can be seen."""
    if not (directory / SOURCE).exists():
        return
    recorded = records.read_record(directory / SOURCE)
    as_then = f"the data in {shown(directory)} is as it was then. To make it anew, choose another --out"
    with contextlib.suppress(ConfigError):  # what it was made from may well be gone
        if recorded.get("tokenizer") not in (None, _tokenizer_digest(request)):
            print(
                f"the tokenizer {shown(request.tokenizer)} is not the one that was used: {as_then}",
                flush=True,
            )
    with contextlib.suppress(ConfigError):
        if difference := _difference(recorded["files"], _listing(request)):
            print(
                f"{shown(request.source)} is not as it was: {difference}; {as_then}",
                flush=True,
            )


def _difference(before: dict[str, list[int]], now: dict[str, list[int]]) -> str:
    added, removed = (
        sorted(now.keys() - before.keys()),
        sorted(before.keys() - now.keys()),
    )
    changed = sorted(
        name for name in now.keys() & before.keys() if now[name] != before[name]
    )
    parts = [
        f"{len(names):,} {what} ({shown(', '.join(names), 200)})"
        for what, names in (("new", added), ("gone", removed), ("changed", changed))
        if names
    ]
    return ", ".join(parts)


def _from_text(
    request: Request, directory: epath.Path, begin: Callable[[], epath.Path]
) -> None:
    left_out = LeftOut()
    options = {
        name: getattr(request, name) for name in ("text_field", "split", "separator")
    }
    documents = itertools.islice(
        sources.documents(request.source, left_out=left_out, **options),
        request.max_documents,
    )
    first = list(itertools.islice(documents, 2))
    if not first:
        raise ConfigError(
            f"{shown(request.source)} holds no document with text: choose another --source"
        )
    chosen = (
        None
        if request.tokenizer in ("bpe", "bytes")
        else tokenizer.load(files.absolute(request.tokenizer), request.eos_id)
    )
    work = begin()
    with locked(directory):
        if len(first) == 1:
            first, split_of = _tail(first[0], request)
            selected = _select(
                dataclasses.replace(request, dedup="off"), first, split_of, work
            )
        else:
            selected = _select(
                request, itertools.chain(first, documents), _by_hash(request), work
            )
        manifest = _tokenized(request, chosen, selected, left_out, directory)
        for line in left_out.lines():
            print(line, flush=True)
        files.write(directory / MANIFEST, manifest.to_json().encode())


def _tail(document: str, request: Request) -> tuple[list[str], Callable[[str], str]]:
    """The two parts of a single document and their splits: its tail, from the start of a line or word, is held out."""
    wanted = max(int(len(document) * (1 - request.validation_fraction)), 1)
    cut = next(
        (
            place + 1
            for mark in ("\n", " ")
            if (place := document.rfind(mark, 1, wanted)) > wanted // 2
        ),
        wanted,
    )
    cut -= document[:cut] == document[cut:]  # their text tells them apart
    head, tail = document[:cut], document[cut:]
    if not head.strip() or not tail.strip():
        raise ConfigError(
            f"one document of {len(document)} characters in {shown(request.source)} is too short for two splits: add text"
        )
    advice = "if more documents are in it, name what stands between them, such as --separator='<|endoftext|>'"
    if request.max_documents == 1:
        advice = "raise --max_documents=1 to hold out whole documents"
    held_out = (
        f"the last {len(tail):,} of its {len(document):,} characters are held out"
    )
    print(
        f"one document of {shown(request.source)} is read, {held_out}; {advice}",
        flush=True,
    )
    return [head, tail], lambda text: "validation" if text == tail else "train"


def _by_hash(request: Request) -> Callable[[str], str]:
    def split_of(text: str) -> str:
        digest = hashlib.blake2b(
            text.encode(), digest_size=8, key=str(request.split_seed).encode()
        ).digest()
        return (
            "validation"
            if int.from_bytes(digest) < request.validation_fraction * 2**64
            else "train"
        )

    return split_of


@dataclasses.dataclass(frozen=True)
class _Selected:
    """The batches of text under `work`."""

    batches: list[str]
    dropped: int  # near-duplicates
    examples: tuple[str, ...]  # of them
    forgotten: bool  # near-duplicates of later documents were not looked for


def _tokenized(
    request: Request,
    chosen: tokenizer.Tokenizer | None,
    selected: _Selected,
    left_out: LeftOut,
    directory: epath.Path,
) -> Manifest:
    encoder = chosen or _make_tokenizer(request, directory, selected.batches)
    encoder.save(directory)
    tried = round_trip.look(
        encoder, _sample(directory / workspace.WORK, selected.batches)
    )
    if warning := round_trip.judge(tried, request.tokenizer):
        print(warning, flush=True)
    dtype = "uint16" if encoder.vocab_size <= 2**16 else "uint32"
    train = _tokenize(
        "train",
        encoder,
        dtype,
        directory,
        selected.batches,
        request.max_tokens,
        left_out,
    )
    validation = _tokenize(
        "validation", encoder, dtype, directory, selected.batches, None, left_out
    )
    return Manifest(
        request=dataclasses.asdict(request),
        tokenizer="bytes" if request.tokenizer == "bytes" else "tokenizer.json",
        vocab_size=encoder.vocab_size,
        eos_id=encoder.eos_id,
        dtype=dtype,
        train=train,
        validation=validation,
        dropped_documents=selected.dropped,
        before=encoder.before,
        tokenizer_digest=files.digest(directory / tokenizer.TOKENIZER),
        near_duplicates=selected.examples,
        duplicates_forgotten=selected.forgotten,
        left_out=left_out.record(),
        round_trip=dataclasses.asdict(tried),
    )


def _sample(work: epath.Path, batches: list[str]) -> list[str]:
    """The beginnings of documents spread over both splits."""
    spread = batches[:: max(len(batches) // 16, 1)]
    sample = []
    for split, batch in itertools.product(SPLITS, spread):
        texts = _texts(work, split, batch)
        sample += texts[:: max(len(texts) * len(spread) // LOOKED_AT, 1)]
    return [text[: tokenizer.PIECE] for text in sample]


def _select(
    request: Request,
    documents: Iterable[str],
    split_of: Callable[[str], str],
    work: epath.Path,
) -> _Selected:
    """Drops near-duplicates and splits the rest, one batch after the other."""
    seen, names, dropped, examples, finished = (
        dedup.DedupIndex(),
        [],
        0,
        [],
        work / "batches.json",
    )
    changed = ConfigError(
        f"{shown(request.source)} changed since {shown(work.parent)} was begun: undo that, or choose another --out"
    )
    fingerprint = dedup.near if request.dedup == "near" else dedup.exact
    wanted, training_bytes = (request.max_tokens or 0) * BYTES_A_TOKEN, 0
    context = multiprocessing.get_context("spawn")
    processes = concurrent.futures.ProcessPoolExecutor(
        mp_context=context, initializer=_leave_ctrl_c_to_the_parent
    )
    with processes as pool, tqdm(unit=" documents", desc="select", disable=None) as bar:
        for number, texts in enumerate(_batched(documents)):
            names.append(name := f"{number:05d}")
            record, hashes = work / f"{name}.json", work / f"{name}.hashes.npy"
            digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()
            if record.exists():
                done = records.read_record(record)
                if done["digest"] != digest:
                    raise changed
                seen.add(_array(hashes.read_bytes()))
            else:
                prints = (
                    pool.map(fingerprint, texts, chunksize=16)
                    if request.dedup != "off"
                    else ()
                )
                kept, left = (
                    _new_documents(texts, prints, seen)
                    if request.dedup != "off"
                    else ([(t, None) for t in texts], [])
                )
                sizes = _write_splits(work, name, [text for text, _ in kept], split_of)
                _save(
                    hashes,
                    np.concatenate(
                        [
                            np.zeros(0, np.uint64),
                            *(print_ for _, print_ in kept if print_ is not None),
                        ]
                    ),
                )
                done = {
                    "digest": digest,
                    "dropped": len(left),
                    "examples": [shown(t, 120) for t in left[:EXAMPLES]],
                    "bytes": sizes,
                }
                records.write_record(record, done)
            dropped += done["dropped"]
            examples += done.get("examples", [])
            training_bytes += done.get("bytes", {}).get("train", 0)
            bar.update(len(texts))
            if wanted and training_bytes >= wanted:
                break
    if seen.full:
        print(
            f"near-duplicates were looked for among the first {dedup.MOST:,} hashes of kept documents, as more take too much memory"
        )
    if finished.exists() and records.read_json(finished) != names:
        raise changed
    records.write_json(finished, names)
    return _Selected(names, dropped, tuple(examples[:EXAMPLES]), seen.full)


def _leave_ctrl_c_to_the_parent() -> None:
    """A terminal sends it to all processes, and each would print a trace."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _write_splits(
    work: epath.Path, name: str, texts: list[str], split_of: Callable[[str], str]
) -> dict[str, int]:
    """One packed file a split; returns the bytes of text in each."""
    by_split = {split: [] for split in SPLITS}
    for text in texts:
        by_split[split_of(text)].append(text)
    for split, its_texts in by_split.items():
        lines = "\n".join(json.dumps(text) for text in its_texts)
        files.write(
            work / f"{name}.{split}.gz", gzip.compress(lines.encode(), compresslevel=1)
        )
    return {
        split: sum(len(text.encode()) for text in its_texts)
        for split, its_texts in by_split.items()
    }


def _batched(documents: Iterable[str]) -> Iterator[list[str]]:
    batch, size = [], 0
    for text in documents:
        batch.append(text)
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _new_documents(
    texts: list[str], fingerprints: Iterable[np.ndarray], seen: dedup.DedupIndex
) -> tuple[list[tuple[str, np.ndarray]], list[str]]:
    """What is kept, with its hashes, and what is a near-duplicate."""
    kept, left = [], []
    for text, fingerprint in zip(texts, fingerprints, strict=True):
        if seen.is_duplicate(fingerprint):
            left.append(text)
        else:
            seen.add(fingerprint)
            kept.append((text, fingerprint))
    return kept, left


def _texts(work: epath.Path, split: str, batch: str) -> list[str]:
    return [
        json.loads(line)
        for line in gzip.decompress((work / f"{batch}.{split}.gz").read_bytes())
        .decode()
        .splitlines()
    ]


def _make_tokenizer(
    request: Request, directory: epath.Path, batches: list[str]
) -> tokenizer.Tokenizer:
    if request.tokenizer == "bytes":
        return tokenizer.of_bytes()
    if (directory / tokenizer.TOKENIZER).exists():  # of the same request, interrupted
        return tokenizer.load(directory / tokenizer.TOKENIZER, tokenizer.BPE_EOS_ID)
    print(
        f"training a BPE of {request.vocab_size} ids on the training split", flush=True
    )
    return tokenizer.train_bpe(
        (
            text
            for batch in batches
            for text in _texts(directory / workspace.WORK, "train", batch)
        ),
        request.vocab_size,
    )


def _tokenize(
    split: str,
    encoder: tokenizer.Tokenizer,
    dtype: str,
    directory: epath.Path,
    batches: list[str],
    max_tokens: int | None,
    left_out: LeftOut,
) -> Split:
    shards, documents, text_bytes, frequencies = (
        [],
        0,
        0,
        np.zeros(encoder.vocab_size, np.int64),
    )
    for batch in tqdm(batches, unit=" shards", desc=split, disable=None):
        file = directory / f"{split}-{batch}.npy"
        texts = _texts(directory / workspace.WORK, split, batch)
        room = None if max_tokens is None else max_tokens - int(frequencies.sum())
        if texts and not file.exists():
            _save(file, _within(encoder.encode(texts), room, dtype))
        content = file.read_bytes() if texts else b""
        tokens = _array(content) if texts else np.zeros(0, dtype)
        kept = int((tokens == encoder.eos_id).sum())
        if kept:
            header = len(content) - tokens.nbytes
            digest = hashlib.sha256(content).hexdigest()
            shards.append(
                Shard(
                    file.name,
                    header,
                    tokens.size,
                    digest,
                    blocks.digests(memoryview(content)[header:]),
                )
            )
            frequencies += np.bincount(tokens, minlength=encoder.vocab_size)
        elif texts:
            file.unlink()
        for text in texts[kept:]:
            left_out.add(f"documents beyond --max_tokens={max_tokens}", shown(text, 60))
        documents += kept
        text_bytes += sum(len(text.encode()) for text in texts[:kept])
    if not documents:
        advice = "change --validation_fraction, --split_seed or the source"
        if max_tokens is not None:
            advice = (
                f"raise --max_tokens={max_tokens}, which the first document exceeds"
            )
        raise ConfigError(f"no document fell into the {split} split: {advice}")
    return Split(
        documents,
        int(frequencies.sum()),
        text_bytes,
        entropy(frequencies),
        tuple(shards),
    )


def _within(documents: list[np.ndarray], room: int | None, dtype: str) -> np.ndarray:
    """The ids of the first documents that have at most `room` of them, of all where it is None."""
    if room is not None:
        ends = np.cumsum([ids.size for ids in documents])
        documents = documents[: int(np.searchsorted(ends, room, side="right"))]
    return np.concatenate(
        [np.zeros(0, dtype), *(ids.astype(dtype) for ids in documents)]
    )


def _save(path: epath.Path, array: np.ndarray) -> None:
    content = io.BytesIO()
    np.save(content, array)
    files.write(path, content.getvalue())


def _array(content: bytes) -> np.ndarray:
    return np.load(io.BytesIO(content), allow_pickle=False)
