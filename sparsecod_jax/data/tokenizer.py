"""How does text become ids, and back?

`bytes` (256 byte values and an end-of-document id), `bpe` (byte-level BPE trained here), or the path of any tokenizer.json.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator

import numpy as np
from etils import epath
from tokenizers import Tokenizer as HFTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from sparsecod_jax import files
from sparsecod_jax.errors import ConfigError

TOKENIZER = "tokenizer.json"
END_OF_DOCUMENT = "<|endoftext|>"
BPE_EOS_ID = 0  # of a BPE trained here
END_NAMES = (END_OF_DOCUMENT, "</s>", "<eos>", "<|end_of_text|>")


@dataclasses.dataclass
class Tokenizer:
    """Text to ids and back; a document's ids end with `eos_id`. Special tokens spelled out in a document stay plain text."""

    inner: HFTokenizer
    eos_id: int
    start_id: int  # stands before a text that has nothing before it
    vocab_size: int = dataclasses.field(init=False)  # the highest id and one: some vocabularies have gaps

    def __post_init__(self):
        self.inner.encode_special_tokens = True
        self.inner.no_truncation()
        self.inner.no_padding()
        self.vocab_size = max(self.inner.get_vocab().values()) + 1

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """The ids of whole documents, uint32, each with `eos_id` at its end."""
        encodings = self.inner.encode_batch_fast(texts, add_special_tokens=False)
        return [np.append(np.array(e.ids, np.uint32), np.uint32(self.eos_id)) for e in encodings]

    def ids(self, text: str, *, framed: bool = False) -> list[int]:
        """The ids of a piece of text; `framed` by the tokens that the tokenizer itself puts around one, as Llama 3's does."""
        return self.inner.encode(text, add_special_tokens=framed).ids

    def decode(self, ids: Iterable[int]) -> str:
        return self.inner.decode(list(ids), skip_special_tokens=False)

    def save(self, directory: epath.Path) -> None:
        """Writes tokenizer.json, whole or not at all.

        Raises:
          ConfigError: `directory` has another tokenizer already.
        """
        file, content = directory / TOKENIZER, self.inner.to_str()
        if file.exists() and file.read_text("utf-8") != content:
            raise ConfigError(f"{file} is another tokenizer than the one asked for: delete {directory} and run again")
        files.write(file, content.encode())


def of_bytes() -> Tokenizer:
    """One id a byte of UTF-8, and 256 for the end of a document."""
    vocabulary = {character: byte for byte, character in _characters_of_bytes()} | {END_OF_DOCUMENT: 256}
    inner = HFTokenizer(models.BPE(vocabulary, []))
    inner.add_special_tokens([END_OF_DOCUMENT])
    return Tokenizer(_byte_level(inner), 256, 256)


def _byte_level(inner: HFTokenizer) -> HFTokenizer:
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    inner.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    return inner


def _characters_of_bytes() -> Iterator[tuple[int, str]]:
    """The printable character by which a byte-level tokenizer writes each byte: itself where that can be seen, else one from 256 on."""
    spare = itertools.count(256)
    for byte in range(256):
        printable = 33 <= byte <= 126 or 161 <= byte <= 172 or byte >= 174
        yield byte, chr(byte if printable else next(spare))


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE of exactly `vocab_size` ids; the end-of-document id is 0.

    Raises:
      ConfigError: the text is too small for that many ids.
    """
    inner = _byte_level(HFTokenizer(models.BPE()))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[END_OF_DOCUMENT], initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator(texts, trainer)
    if inner.get_vocab_size() != vocab_size:
        raise ConfigError(f"the training split yields {inner.get_vocab_size()} BPE ids, not {vocab_size}: lower --vocab_size")
    return Tokenizer(inner, BPE_EOS_ID, BPE_EOS_ID)


def load(path: epath.Path, eos_id: int | None = None, start_id: int | None = None) -> Tokenizer:
    """Reads a tokenizer.json; without `eos_id` its end of document is the token of a usual name.

    Raises:
      ConfigError: the file is missing or not a tokenizer, or it has no end-of-document token.
    """
    if not path.exists():
        raise ConfigError(f"there is no tokenizer {path}: use bytes, bpe, or the path of a tokenizer.json")
    try:
        inner = HFTokenizer.from_str(path.read_text())
    except Exception as error:  # the library raises bare Exception
        raise ConfigError(f"{path} is not a tokenizer.json of the tokenizers library: {error}") from error
    if eos_id is None:
        eos_id = next((i for name in END_NAMES if (i := inner.token_to_id(name)) is not None), None)
    if eos_id is None:
        raise ConfigError(f"{path} has no end-of-document token ({', '.join(END_NAMES)}): give its id with --eos_id")
    if eos_id not in inner.get_vocab().values():
        raise ConfigError(f"{path} has no id {eos_id}: give the id of its end-of-document token with --eos_id")
    return Tokenizer(inner, eos_id, eos_id if start_id is None else start_id)
