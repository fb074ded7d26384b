"""How does a source become token shards?

Documents are read in batches; near-duplicates are dropped, the rest is split by a seeded hash of its text, so that the split does not
depend on the order. The chosen text waits under `work/`, one file a batch and split, until the tokenizer (trained on the training split
where asked for) turns each into a shard. A finished file is never made again, so an interrupted run goes on where it stopped.
"""

import concurrent.futures
import dataclasses
import gzip
import hashlib
import io
import itertools
import json
import multiprocessing
from collections.abc import Iterable, Iterator

import numpy as np
from etils import epath
from tqdm import tqdm

from sparsecod_jax import files
from sparsecod_jax.data import dedup, raw, sources, tokenizer
from sparsecod_jax.data.store import MANIFEST, Manifest, Shard, Split, entropy, read_manifest
from sparsecod_jax.errors import ConfigError

SPLITS = ("train", "validation")
BATCH_CHARACTERS = 2**25


@dataclasses.dataclass(frozen=True)
class Request:
    """What to make: `sparsecod data`'s options, see `sources` and `tokenizer` for the names."""

    source: str
    tokenizer: str = "bpe"
    vocab_size: int = 0  # of a trained BPE, 0 for other tokenizers
    eos_id: int | None = None  # where a tokenizer.json does not tell
    split_seed: int = 0
    validation_fraction: float = 0.05  # expected share of held-out documents

    def __post_init__(self):
        if self.tokenizer == "bpe" and self.vocab_size < 257:
            raise ConfigError(f"--vocab_size={self.vocab_size} can't hold the 256 bytes and an end of document: use 257 or more")
        if not 0 < self.validation_fraction < 1:
            raise ConfigError(f"--validation_fraction={self.validation_fraction} is not between 0 and 1: try 0.05")


def prepare(request: Request, out: str) -> Manifest:
    """Makes the data directory `out`, finishes an interrupted one, or finds it finished.

    Raises:
      ConfigError: the source or tokenizer is not usable, or `out` holds the data of another request.
    """
    directory = files.absolute(out)
    command = f"sparsecod data --source={request.source} --out={out}"
    if (directory / MANIFEST).exists():
        _check_same(directory, read_manifest(directory, command).request, request)
    else:
        from_ids = raw.is_token_folder(files.absolute(request.source))
        manifest = (raw.index if from_ids else _from_text)(request, directory)
        files.write(directory / MANIFEST, manifest.to_json().encode())
    if (directory / "work").exists():
        (directory / "work").rmtree()
    return read_manifest(directory, command)


def _check_same(directory: epath.Path, before: dict, request: Request) -> None:
    now = dataclasses.asdict(request)
    changed = [f"{name} was {before.get(name)!r}, is {now[name]!r}" for name in now if before.get(name) != now[name]]
    if changed:
        raise ConfigError(f"{directory} holds data of another request ({'; '.join(changed)}): choose another --out, or delete it")


def _from_text(request: Request, directory: epath.Path) -> Manifest:
    documents = sources.documents(request.source)
    first = next(documents, None)
    if first is None:
        raise ConfigError(f"{request.source} holds no document with text: choose another --source")
    chosen = None if request.tokenizer in ("bpe", "bytes") else tokenizer.load(files.absolute(request.tokenizer), request.eos_id)
    work = _begin(request, directory)
    batches = _select(request, itertools.chain([first], documents), work)
    chosen = chosen or _make_tokenizer(request, directory, batches)
    chosen.save(directory)
    dtype = "uint16" if chosen.vocab_size <= 2**16 else "uint32"
    train, validation = (_tokenize(split, chosen, dtype, directory, batches) for split in SPLITS)
    return Manifest(
        request=dataclasses.asdict(request),
        tokenizer="bytes" if request.tokenizer == "bytes" else "tokenizer.json",
        vocab_size=chosen.vocab_size,
        eos_id=chosen.eos_id,
        dtype=dtype,
        train=train,
        validation=validation,
        dropped_documents=sum(json.loads((work / f"{batch}.json").read_text())["dropped"] for batch in batches),
    )


def _begin(request: Request, directory: epath.Path) -> epath.Path:
    """The folder for unfinished work; refuses shards and work that another request left behind."""
    work = directory / "work"
    shards = [file for split in SPLITS for file in directory.glob(f"{split}-*.npy")] if directory.exists() else []
    if (work / "request.json").exists():
        _check_same(directory, json.loads((work / "request.json").read_text()), request)
    elif shards:
        raise ConfigError(f"{directory} holds shards such as {shards[0].name} without their manifest: delete it or choose another --out")
    work.mkdir(parents=True, exist_ok=True)
    files.write_json(work / "request.json", dataclasses.asdict(request))
    return work


def _select(request: Request, documents: Iterable[str], work: epath.Path) -> list[str]:
    """Drops near-duplicates and splits the rest, one batch after the other; returns the names of the batches."""
    seen, names, finished = dedup.Seen(), [], work / "batches.json"
    changed = ConfigError(f"{request.source} changed since {work.parent} was begun: delete {work.parent} and run again")
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(mp_context=context) as pool, tqdm(unit=" documents", desc="select", disable=None) as bar:
        for number, texts in enumerate(_batched(documents)):
            names.append(name := f"{number:05d}")
            record, hashes = work / f"{name}.json", work / f"{name}.hashes.npy"
            digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()
            if record.exists():
                if json.loads(record.read_text())["digest"] != digest:
                    raise changed
                seen.add(_array(hashes.read_bytes()))
            else:
                kept = _new_documents(texts, pool.map(dedup.fingerprint, texts, chunksize=16), seen)
                splits = [_split_of(text, request) for text, _ in kept]
                for split in SPLITS:
                    lines = "\n".join(json.dumps(text) for (text, _), its_split in zip(kept, splits, strict=True) if its_split == split)
                    files.write(work / f"{name}.{split}.gz", gzip.compress(lines.encode(), compresslevel=1))
                _save(hashes, np.concatenate([fingerprint for _, fingerprint in kept] or [np.zeros(0, np.uint64)]))
                files.write_json(record, {"digest": digest, "dropped": len(texts) - len(kept)})
            bar.update(len(texts))
    if finished.exists() and json.loads(finished.read_text()) != names:
        raise changed
    files.write_json(finished, names)
    return names


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


def _new_documents(texts: list[str], fingerprints: Iterable[np.ndarray], seen: dedup.Seen) -> list[tuple[str, np.ndarray]]:
    kept = []
    for text, fingerprint in zip(texts, fingerprints, strict=True):
        if not seen.is_duplicate(fingerprint):
            seen.add(fingerprint)
            kept.append((text, fingerprint))
    return kept


def _split_of(text: str, request: Request) -> str:
    digest = hashlib.blake2b(text.encode(), digest_size=8, key=str(request.split_seed).encode()).digest()
    return "validation" if int.from_bytes(digest) < request.validation_fraction * 2**64 else "train"


def _texts(work: epath.Path, split: str, batch: str) -> list[str]:
    return [json.loads(line) for line in gzip.decompress((work / f"{batch}.{split}.gz").read_bytes()).decode().splitlines()]


def _make_tokenizer(request: Request, directory: epath.Path, batches: list[str]) -> tokenizer.Tokenizer:
    if request.tokenizer == "bytes":
        return tokenizer.of_bytes()
    if (directory / tokenizer.TOKENIZER).exists():  # of the same request, interrupted
        return tokenizer.load(directory / tokenizer.TOKENIZER, tokenizer.BPE_EOS_ID)
    print(f"training a BPE of {request.vocab_size} ids on the training split", flush=True)
    return tokenizer.train_bpe((text for batch in batches for text in _texts(directory / "work", "train", batch)), request.vocab_size)


def _tokenize(split: str, encoder: tokenizer.Tokenizer, dtype: str, directory: epath.Path, batches: list[str]) -> Split:
    shards, documents, text_bytes, frequencies = [], 0, 0, np.zeros(encoder.vocab_size, np.int64)
    for batch in tqdm(batches, unit=" shards", desc=split, disable=None):
        file = directory / f"{split}-{batch}.npy"
        texts = _texts(directory / "work", split, batch)
        if texts and not file.exists():
            _save(file, np.concatenate(encoder.encode(texts)).astype(dtype))
        if texts:
            content = file.read_bytes()
            tokens = _array(content)
            shards.append(Shard(file.name, len(content) - tokens.nbytes, tokens.size, hashlib.sha256(content).hexdigest()))
            frequencies += np.bincount(tokens, minlength=encoder.vocab_size)
        documents += len(texts)
        text_bytes += sum(len(text.encode()) for text in texts)
    if not documents:
        raise ConfigError(f"no document fell into the {split} split: change --validation_fraction, --split_seed or the source")
    return Split(documents, int(frequencies.sum()), text_bytes, entropy(frequencies), tuple(shards))


def _save(path: epath.Path, array: np.ndarray) -> None:
    content = io.BytesIO()
    np.save(content, array)
    files.write(path, content.getvalue())


def _array(content: bytes) -> np.ndarray:
    return np.load(io.BytesIO(content), allow_pickle=False)
