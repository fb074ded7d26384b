"""Which documents are kept?

Selection: documents are read in batches, near-duplicates of earlier ones are dropped, and
the rest is written to `work`, one file per batch and split. A batch that is finished is
not selected again, so that interrupted work can be resumed.
"""

import concurrent.futures
import dataclasses
import gzip
import hashlib
import io
import json
import multiprocessing
import signal
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from etils import epath
from tqdm import tqdm

from sparsecod_jax.data import dedup
from sparsecod_jax.data.request import Request
from sparsecod_jax.data.splitting import SPLITS, SplitOf
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.shell.shown import shown
from sparsecod_jax.storage import files, records

BATCH_CHARACTERS = 2**25
# At most, in the mean of a text: decides when to stop reading for max_tokens.
BYTES_PER_TOKEN = 8
EXAMPLES = 20  # of near-duplicates in the manifest


@dataclasses.dataclass(frozen=True)
class Selected:
    """The batches of text in `work`.

    Attributes:
      batches: their names, in order.
      dropped: how many near-duplicates.
      examples: the beginnings of some of them.
      forgotten: near-duplicates of later documents were not looked for.
    """

    batches: list[str]
    dropped: int
    examples: tuple[str, ...]
    forgotten: bool


def select(
    request: Request, documents: Iterable[str], split_of: SplitOf, work: epath.Path
) -> Selected:
    """Drops near-duplicates and splits the rest, one batch after the other.

    Args:
      documents: the source; it may be endless if the request limits the tokens.
      split_of: the split of a text.
      work: gets the texts, and what is needed to resume.

    Raises:
      ConfigError: the source changed since the work was begun.
    """
    selector = _Selector(request, split_of, work)
    wanted_bytes = (request.max_tokens or 0) * BYTES_PER_TOKEN
    training_bytes = 0
    records = {}
    progress = tqdm(unit=" documents", desc="select", disable=None)
    with _processes() as pool, progress:
        for number, texts in enumerate(_batched(documents)):
            batch = f"{number:05d}"
            record = selector.select_batch(batch, texts, pool)
            records[batch] = record
            # Records of earlier versions have neither sizes nor examples.
            training_bytes += record.get("bytes", {}).get("train", 0)
            progress.update(len(texts))
            if wanted_bytes and training_bytes >= wanted_bytes:
                break
    selector.finish(list(records))
    dropped = 0
    examples = []
    for record in records.values():
        dropped += record["dropped"]
        examples += record.get("examples", [])
    return Selected(
        batches=list(records),
        dropped=dropped,
        examples=tuple(examples[:EXAMPLES]),
        forgotten=selector.index.full,
    )


def read_texts(work: epath.Path, split: str, batch: str) -> list[str]:
    """The texts of a split that were selected from a batch."""
    content = gzip.decompress(_text_file(work, split, batch).read_bytes())
    # JSON escapes line ends and all that is not ASCII.
    lines = content.decode().splitlines()
    return [json.loads(line) for line in lines]


def _text_file(work: epath.Path, split: str, batch: str) -> epath.Path:
    return work / f"{batch}.{split}.gz"


def _batched(documents: Iterable[str]) -> Iterator[list[str]]:
    """Documents in order; each batch ends with the one that fills it."""
    batch = []
    size = 0
    for text in documents:
        batch.append(text)
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch = []
            size = 0
    if batch:
        yield batch


def _processes() -> concurrent.futures.ProcessPoolExecutor:
    """Where fingerprints are computed; processes start with the first of them."""
    return concurrent.futures.ProcessPoolExecutor(
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_ignore_interrupts,
    )


def _ignore_interrupts() -> None:
    """A terminal sends Ctrl-C to all processes, and each would print a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Selector:
    """Selects batches in their order, or reads what an earlier attempt selected."""

    def __init__(self, request: Request, split_of: SplitOf, work: epath.Path):
        self.index = dedup.DedupIndex()
        self._request = request
        self._split_of = split_of
        self._work = work

    def select_batch(
        self, batch: str, texts: list[str], pool: concurrent.futures.Executor
    ) -> dict[str, Any]:
        """Selects one batch.

        Args:
          batch: its name.
          texts: its documents.
          pool: computes fingerprints.

        Returns:
          Its record: a digest of the documents, how many were dropped with some examples,
          and the bytes of text in each split.
        """
        path = self._work / f"{batch}.json"
        hashes_path = self._work / f"{batch}.hashes.npy"
        joined = "\0".join(texts)
        digest = hashlib.sha256(joined.encode()).hexdigest()
        if path.exists():
            record = records.read_record(path)
            if record["digest"] != digest:
                raise self._changed()
            # Later batches are compared with what was kept of this one.
            content = io.BytesIO(hashes_path.read_bytes())
            self.index.add(np.load(content, allow_pickle=False))
            return record
        kept, dropped, hashes = self._without_duplicates(texts, pool)
        sizes = self._write_splits(batch, kept)
        files.write_array(hashes_path, hashes)
        record = {
            "digest": digest,
            "dropped": len(dropped),
            "examples": [shown(text, 120) for text in dropped[:EXAMPLES]],
            "bytes": sizes,
        }
        # Written last: with its record a batch is finished.
        records.write_record(path, record)
        return record

    def finish(self, batches: list[str]) -> None:
        """Records that these were all batches."""
        if self.index.full:
            print(
                f"near-duplicates were looked for among the first {dedup.MOST:,} hashes of"
                " kept documents, as more take too much memory"
            )
        path = self._work / "batches.json"
        if path.exists() and records.read_json(path) != batches:
            raise self._changed()
        records.write_json(path, batches)

    def _without_duplicates(
        self, texts: list[str], pool: concurrent.futures.Executor
    ) -> tuple[list[str], list[str], np.ndarray]:
        """The texts that are kept, those that are dropped, and the hashes of the kept."""
        no_hashes = np.zeros(0, np.uint64)
        if self._request.dedup == "off":
            return texts, [], no_hashes
        fingerprint = dedup.exact
        if self._request.dedup == "near":
            fingerprint = dedup.near
        kept = []
        dropped = []
        hashes = [no_hashes]
        # Fingerprints are independent; which documents are kept depends on their order.
        fingerprints = pool.map(fingerprint, texts, chunksize=16)
        for text, text_hashes in zip(texts, fingerprints, strict=True):
            if self.index.is_duplicate(text_hashes):
                dropped.append(text)
                continue
            self.index.add(text_hashes)
            kept.append(text)
            hashes.append(text_hashes)
        return kept, dropped, np.concatenate(hashes)

    def _write_splits(self, batch: str, texts: list[str]) -> dict[str, int]:
        """Writes one compressed file per split; returns the bytes of text in each."""
        lines: dict[str, list[str]] = {split: [] for split in SPLITS}
        sizes = dict.fromkeys(SPLITS, 0)
        for text in texts:
            split = self._split_of(text)
            lines[split].append(json.dumps(text))
            sizes[split] += len(text.encode())
        for split in SPLITS:
            content = "\n".join(lines[split]).encode()
            # The fastest level, as the file is read once or twice.
            packed = gzip.compress(content, compresslevel=1)
            files.write(_text_file(self._work, split, batch), packed)
        return sizes

    def _changed(self) -> ConfigError:
        """The error of a source that is not what earlier batches were read from."""
        return ConfigError(
            f"{shown(self._request.source)} changed since {shown(self._work.parent)}"
            " was begun: undo that, or choose another --out"
        )
