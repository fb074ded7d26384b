"""How does text become ids, and back?

`bytes` (256 byte values and an end-of-document id), `bpe` (byte-level BPE trained here), or the
path of any tokenizer.json.

What stands before and after a text is one decision (docs/design.md, "Framing"): in data made here
nothing stands before a text and the end-of-document id after it, whatever the post-processor of
its tokenizer would add, and eval, generate and export do as the data did. Only a foreign model,
given by --hf or imported, has the framing of its own tokenizer.
"""

import copy
import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Iterable, Iterator

import numpy as np
from etils import epath
from tokenizers import Tokenizer as HFTokenizer
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from sparsecod_jax.data import trial
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.shell.shown import shown
from sparsecod_jax.storage import files

TOKENIZER = "tokenizer.json"
END_OF_DOCUMENT = "<|endoftext|>"
BPE_EOS_ID = 0  # of a BPE trained here
END_NAMES = (END_OF_DOCUMENT, "</s>", "<eos>", "<|end_of_text|>")
MOST_IDS = 2**24  # of a vocabulary
PIECE = (
    2**20
)  # characters that are encoded at a time, as the library takes 150 bytes for an id
SPACE = re.compile(r"(?<=\S)\s(?=\S)")  # where a longer text may be cut
AROUND = 2**7  # characters on either side of a cut whose ids must not depend on it
TRIES = 64  # places that are looked at before a text is taken as a whole


@dataclasses.dataclass
class Tokenizer:
    """Text to ids and back. Special tokens spelled out in a text stay plain text, or are refused."""

    inner: HFTokenizer
    eos_id: int  # stands after a document
    start_id: int  # stands before a text that has nothing before it
    before: tuple[int, ...] = ()  # ids with which each document begins
    vocab_size: int = dataclasses.field(
        init=False
    )  # the highest id and one: some have gaps

    def __post_init__(self):
        self.inner.encode_special_tokens = True
        self.vocab_size = max(self.inner.get_vocab().values()) + 1

    @functools.cached_property
    def unknown_id(self) -> int | None:
        """What stands for characters or words that the vocabulary lacks; None where there is no such id."""
        model = json.loads(self.inner.to_str())["model"]
        name = model.get("unk_token")
        return self.inner.token_to_id(name) if name is not None else model.get("unk_id")

    @functools.cached_property
    def _special(self) -> np.ndarray:
        """Ids that no text may have: a model whose vocabulary lists them finds them in a text all the same."""
        added = self.inner.get_added_tokens_decoder()
        special = {number for number, token in added.items() if token.special} - {
            self.unknown_id
        }
        return np.array(sorted(special | {self.eos_id}), np.uint32)

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """The ids of whole documents, uint32: what stands before each, its text, and `eos_id`.

        Raises:
          ConfigError: a text spells a special token in a way that becomes its id.
        """
        return [
            np.array([*self.before, *ids, self.eos_id], np.uint32)
            for ids in self._texts(texts)
        ]

    def ids(self, text: str) -> list[int]:
        """The ids of a piece of text, with nothing around it."""
        return self._texts([text])[0].tolist()

    def beginning(self, text: str) -> list[int]:
        """The ids of a text from its beginning; nothing is put after it, so that it can go on."""
        return [*self.before, *self.ids(text)]

    def decode(self, ids: Iterable[int]) -> str:
        return self.inner.decode(list(ids), skip_special_tokens=False)

    def _texts(self, texts: list[str]) -> list[np.ndarray]:
        found: list[list[np.ndarray]] = [[] for _ in texts]
        for part in self._parts(texts):
            for (number, piece), encoded in zip(
                part, self._encoded([piece for _, piece in part]), strict=True
            ):
                ids = np.array(encoded, np.uint32)
                self._check_plain(piece, ids)
                found[number].append(ids)
        return [np.concatenate(pieces) for pieces in found]

    def _encoded(self, texts: list[str]) -> list[list[int]]:
        with trial.panics_named(TOKENIZER):
            return [
                encoding.ids
                for encoding in self.inner.encode_batch_fast(
                    texts, add_special_tokens=False
                )
            ]

    def _parts(self, texts: list[str]) -> Iterator[list[tuple[int, str]]]:
        """The texts with their numbers, some PIECE characters at a time; a longer text is cut."""
        part, size = [], 0
        for number, text in enumerate(texts):
            for piece in self._pieces(text):
                part.append((number, piece))
                size += len(piece)
                if size >= PIECE:
                    yield part
                    part, size = [], 0
        if part:
            yield part

    def _pieces(self, text: str) -> Iterator[str]:
        """`text` itself, or its pieces, cut at spaces where that leaves the ids of the text around as they are."""
        start = 0
        while len(text) - start > PIECE:
            places = itertools.islice(SPACE.finditer(text, start + PIECE), TRIES)
            stop = next(
                (
                    place.start()
                    for place in places
                    if self._divides(text, place.start())
                ),
                len(text),
            )
            yield text[start:stop]
            start = stop
        if start < len(text) or not text:
            yield text[start:]

    def _divides(self, text: str, place: int) -> bool:
        before, after = text[place - AROUND : place], text[place : place + AROUND]
        whole, first, second = self._encoded([before + after, before, after])
        return whole == first + second

    def _check_plain(self, text: str, ids: np.ndarray) -> None:
        spelled = ids[np.isin(ids, self._special)]
        if spelled.size:
            name = self.inner.id_to_token(int(spelled[0]))
            what = (
                "has a word that is unknown to this tokenizer, for which it has"
                if spelled[0] == self.unknown_id
                else "spells"
            )
            raise ConfigError(
                f"a text {what} {shown(name)}, which would be taken for the special token itself"
                f" ({shown(text, 60)}): choose another tokenizer, or take the word out of the text"
            )

    @property
    def rules(self) -> str:
        """All that decides the ids of a text, as JSON; what a tokenizer would put around it is left out."""
        return json.dumps({**json.loads(self.inner.to_str()), "post_processor": None})

    def stock(self) -> bytes:
        """A tokenizer.json with which stock code puts `before` in front of a text, and nothing else around it."""
        if not self.before and not self.inner.num_special_tokens_to_add(False):
            return self.inner.to_str().encode()
        inner = copy.deepcopy(self.inner)
        named = [
            (str(self.inner.id_to_token(number)), number) for number in self.before
        ]
        single = " ".join([*(name for name, _ in named), "$A"])
        template = (
            processors.TemplateProcessing(single=single, special_tokens=named)
            if named
            else None
        )
        inner.post_processor = template  # pyright: ignore[reportAttributeAccessIssue]
        return inner.to_str().encode()

    def save(self, directory: epath.Path) -> None:
        """Writes tokenizer.json, whole or not at all.

        Raises:
          ConfigError: `directory` has another tokenizer already.
        """
        file, content = directory / TOKENIZER, self.inner.to_str()
        if file.exists() and file.read_bytes() != content.encode():
            raise ConfigError(
                f"{file} is another tokenizer than the one asked for: choose another --out"
            )
        files.write(file, content.encode())


def framing(inner: HFTokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that a tokenizer's own post-processor puts before a text, and after it."""
    if not inner.num_special_tokens_to_add(False):
        return (), ()
    words = (
        word
        for word in ("a", *inner.get_vocab())
        if inner.encode(word, add_special_tokens=False).ids
    )
    encoding = inner.encode(next(words, ""))
    special = np.array([*encoding.special_tokens_mask, 0], bool)
    first, last = (
        int((~special).argmax()),
        len(encoding.ids) - int((~special[-2::-1]).argmax()),
    )
    return tuple(encoding.ids[:first]), tuple(encoding.ids[last:])


def of_bytes() -> Tokenizer:
    """One id a byte of UTF-8, and 256 for the end of a document."""
    vocabulary = {character: byte for byte, character in _characters_of_bytes()} | {
        END_OF_DOCUMENT: 256
    }
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
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_DOCUMENT],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    if inner.get_vocab_size() != vocab_size:
        raise ConfigError(
            f"the training split yields {inner.get_vocab_size()} BPE ids, not {vocab_size}: lower --vocab_size"
        )
    return Tokenizer(inner, BPE_EOS_ID, BPE_EOS_ID)


def load(
    path: epath.Path,
    eos_id: int | None = None,
    start_id: int | None = None,
    before: tuple[int, ...] | None = (),
) -> Tokenizer:
    """Reads a tokenizer.json.

    Args:
      eos_id: ends a document; None takes the special token of a usual name.
      start_id: stands before a text that has nothing before it; None takes the end of a document.
      before: what each document begins with; None takes what the tokenizer itself puts there.

    Raises:
      ConfigError: the file is missing or not a tokenizer, or it has no end-of-document token.
    """
    inner = _read(path)
    if eos_id is None:
        special = {
            token.content: number
            for number, token in inner.get_added_tokens_decoder().items()
            if token.special
        }
        eos_id = next((special[name] for name in END_NAMES if name in special), None)
    if eos_id is None:
        raise ConfigError(
            f"{shown(path)} has no special token that ends a document ({', '.join(END_NAMES)}): give the id of one with --eos_id"
        )
    if eos_id not in inner.get_vocab().values():
        raise ConfigError(
            f"{shown(path)} has no id {eos_id}: give the id of its end-of-document token with --eos_id"
        )
    with trial.panics_named(path):
        before = framing(inner)[0] if before is None else before
    return Tokenizer(inner, eos_id, eos_id if start_id is None else start_id, before)


def _read(path: epath.Path) -> HFTokenizer:
    content = trial.content(path)
    trial.check(path, content)
    with trial.panics_named(path):
        try:
            inner = HFTokenizer.from_str(content)
        except Exception as error:  # the library raises bare Exception
            raise ConfigError(
                f"{shown(path)} is not a tokenizer.json of the tokenizers library: {shown(error)}"
            ) from error
    highest = max(inner.get_vocab().values(), default=0)
    if not 0 < highest < MOST_IDS:
        raise ConfigError(
            f"{shown(path)} has no usable vocabulary, its highest id is {highest:,}: choose another tokenizer"
        )
    inner.no_truncation()
    inner.no_padding()
    return inner
