"""How do the selected texts become token shards?

Encoding: the tokenizer turns each batch of a split into one shard, a .npy file. A finished
shard is not made again.
"""

import dataclasses
import hashlib
import io
import itertools

import numpy as np
from etils import epath
from tqdm import tqdm

from sparsecod_jax.data import blocks, tokenizer, workspace
from sparsecod_jax.data.blocks import Shard
from sparsecod_jax.data.left_out import LeftOut
from sparsecod_jax.data.request import Request
from sparsecod_jax.data.selection import read_texts
from sparsecod_jax.data.splitting import SPLITS
from sparsecod_jax.data.store import Split, entropy
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.shell.shown import shown
from sparsecod_jax.storage import files

SAMPLE = 512  # documents of each split on which a tokenizer is tried
SAMPLED_BATCHES = 16  # at least, where there are as many


def make_tokenizer(
    request: Request, directory: epath.Path, batches: list[str]
) -> tokenizer.Tokenizer:
    """The tokenizer that needs no file: of bytes, or trained on the training split."""
    if request.tokenizer == "bytes":
        return tokenizer.of_bytes()
    path = directory / tokenizer.TOKENIZER
    if path.exists():  # of the same request, which was interrupted
        return tokenizer.load(path, tokenizer.BPE_EOS_ID)
    print(
        f"training a BPE of {request.vocab_size} ids on the training split", flush=True
    )
    work = directory / workspace.WORK
    texts = (read_texts(work, "train", batch) for batch in batches)
    return tokenizer.train_bpe(itertools.chain.from_iterable(texts), request.vocab_size)


def sample(directory: epath.Path, batches: list[str]) -> list[str]:
    """The beginnings of documents spread over both splits."""
    # Every so many batches, and of these every so many documents.
    stride = max(len(batches) // SAMPLED_BATCHES, 1)
    chosen = batches[::stride]
    sampled = []
    for split, batch in itertools.product(SPLITS, chosen):
        texts = read_texts(directory / workspace.WORK, split, batch)
        expected = len(texts) * len(chosen)
        stride = max(expected // SAMPLE, 1)
        sampled += texts[::stride]
    # A long document need not be encoded as a whole to try a tokenizer.
    return [text[: tokenizer.PIECE] for text in sampled]


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Makes the shards of the selected batches.

    Attributes:
      directory: gets the shards; its folder for unfinished work has the texts.
      batches: names, in order.
      left_out: records documents beyond a limit.
    """

    directory: epath.Path
    batches: list[str]
    tokenizer: tokenizer.Tokenizer
    left_out: LeftOut

    @property
    def dtype(self) -> str:
        """The narrowest dtype of shards that holds every id."""
        if self.tokenizer.vocab_size <= 2**16:
            return "uint16"
        return "uint32"

    def make(self, split: str, max_tokens: int | None = None) -> Split:
        """Makes the shards of a split.

        Args:
          max_tokens: of the first documents that are used; None uses all.

        Raises:
          ConfigError: the split has no document.
        """
        vocab_size = self.tokenizer.vocab_size
        frequencies = np.zeros(vocab_size, np.int64)
        shards = []
        documents = text_bytes = 0
        for batch in tqdm(self.batches, unit=" shards", desc=split, disable=None):
            texts = read_texts(self.directory / workspace.WORK, split, batch)
            if not texts:
                continue  # all documents of the batch are in the other split
            room = None
            if max_tokens is not None:
                room = max_tokens - int(frequencies.sum())
            file = self.directory / f"{split}-{batch}.npy"
            content = self._content(file, texts, room)
            ids = np.load(io.BytesIO(content), allow_pickle=False)
            kept = int((ids == self.tokenizer.eos_id).sum())
            documents += kept
            text_bytes += _bytes(texts[:kept])
            self._leave_out(texts[kept:], max_tokens)
            if kept:
                shards.append(_shard(file.name, content, ids))
                frequencies += np.bincount(ids, minlength=vocab_size)
            else:
                file.unlink()  # max_tokens left no room for any
        if not documents:
            raise _no_document(split, max_tokens)
        return Split(
            documents=documents,
            tokens=int(frequencies.sum()),
            text_bytes=text_bytes,
            unigram_entropy=entropy(frequencies),
            shards=tuple(shards),
        )

    def _content(self, file: epath.Path, texts: list[str], room: int | None) -> bytes:
        """The content of a shard, which is made unless an earlier attempt made it.

        Args:
          room: as for `_encode`.
        """
        if not file.exists():
            files.write_array(file, self._encode(texts, room))
        return file.read_bytes()

    def _encode(self, texts: list[str], room: int | None) -> np.ndarray:
        """The ids of the first documents that have at most `room` ids; None is no limit."""
        documents = self.tokenizer.encode(texts)
        if room is not None:
            sizes = [ids.size for ids in documents]
            ends = np.cumsum(sizes)
            count = int(np.searchsorted(ends, room, side="right"))
            documents = documents[:count]
        # The empty array is what remains if no document fits.
        arrays = [np.zeros(0, self.dtype)]
        for ids in documents:
            arrays.append(ids.astype(self.dtype))
        return np.concatenate(arrays)

    def _leave_out(self, texts: list[str], max_tokens: int | None) -> None:
        for text in texts:
            reason = f"documents beyond --max_tokens={max_tokens}"
            self.left_out.add(reason, shown(text, 60))


def _bytes(texts: list[str]) -> int:
    return sum(len(text.encode()) for text in texts)


def _shard(name: str, content: bytes, ids: np.ndarray) -> Shard:
    """The shard of an .npy file with that content, whose header the blocks leave out."""
    header = len(content) - ids.nbytes
    return Shard(
        file=name,
        offset=header,
        tokens=ids.size,
        sha256=hashlib.sha256(content).hexdigest(),
        blocks=blocks.digests(memoryview(content)[header:]),
    )


def _no_document(split: str, max_tokens: int | None) -> ConfigError:
    """The error of a split without documents."""
    advice = "change --validation_fraction, --split_seed or the source"
    if max_tokens is not None:
        advice = f"raise --max_tokens={max_tokens}, which the first document exceeds"
    return ConfigError(f"no document fell into the {split} split: {advice}")
