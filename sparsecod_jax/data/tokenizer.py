"""How does text become ids, and back?

Tokenizers: `bytes` (256 byte values and an end-of-document id), `bpe` (byte-level BPE
trained here), or the path of any tokenizer.json.

What surrounds a text is one decision (docs/design.md, "Framing"). In data made here
nothing stands before a text and the end-of-document id after it, whatever the
post-processor of its tokenizer would add; eval, generate and export follow the data. Only
a foreign model, given by --hf or imported, has the framing of its own tokenizer.
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
# Usual names of the end-of-document token.
END_NAMES = (END_OF_DOCUMENT, "</s>", "<eos>", "<|end_of_text|>")
MOST_IDS = 2**24  # of a vocabulary
# Characters that are encoded at a time, as the library takes 150 bytes for an id.
PIECE = 2**20
SPACE = re.compile(r"(?<=\S)\s(?=\S)")  # where a longer text may be cut
AROUND = 2**7  # characters on either side of a cut whose ids must not depend on it
TRIES = 64  # spaces that are tried before a text is encoded as a whole


Ids = tuple[int, ...]


@dataclasses.dataclass
class Tokenizer:
    """Text to ids and back.

    Special tokens spelled out in a text stay plain text, or the text is refused.

    Attributes:
      inner: of the tokenizers library.
      eos_id: stands after a document.
      start_id: stands before a text that has nothing before it.
      before: ids with which each document begins.
      vocab_size: the highest id plus one, as some vocabularies have gaps.
    """

    inner: HFTokenizer
    eos_id: int
    start_id: int
    before: Ids = ()
    vocab_size: int = dataclasses.field(init=False)

    def __post_init__(self):
        # A text that spells "<|endoftext|>" is encoded as any other text.
        self.inner.encode_special_tokens = True
        highest = max(self.inner.get_vocab().values())
        self.vocab_size = highest + 1

    @functools.cached_property
    def unknown_id(self) -> int | None:
        """The id of characters or words outside the vocabulary; None where there is none."""
        model = json.loads(self.inner.to_str())["model"]
        name = model.get("unk_token")
        if name is None:
            return model.get("unk_id")
        return self.inner.token_to_id(name)

    @functools.cached_property
    def _special(self) -> np.ndarray:
        """Ids that no text may have.

        A model whose vocabulary lists special tokens finds them in a text all the same.
        """
        added = self.inner.get_added_tokens_decoder()
        special = {number for number, token in added.items() if token.special}
        special.discard(self.unknown_id)  # pyright: ignore[reportArgumentType]
        special.add(self.eos_id)
        return np.array(sorted(special), np.uint32)

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """The ids of whole documents, uint32: `before`, the text, and `eos_id`.

        Raises:
          ConfigError: a text spells a special token in a way that becomes its id.
        """
        documents = []
        for ids in self._encode_plain(texts):
            document = [*self.before, *ids, self.eos_id]
            documents.append(np.array(document, np.uint32))
        return documents

    def ids(self, text: str) -> list[int]:
        """The ids of a piece of text, with nothing around it."""
        return self._encode_plain([text])[0].tolist()

    def beginning(self, text: str) -> list[int]:
        """The ids of a text from its beginning, without an end, so that it can continue."""
        return [*self.before, *self.ids(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; special tokens are spelled out."""
        return self.inner.decode(list(ids), skip_special_tokens=False)

    def _encode_plain(self, texts: list[str]) -> list[np.ndarray]:
        """The ids of each text, with nothing around it."""
        arrays_of: list[list[np.ndarray]] = [[] for _ in texts]
        for group in self._groups(texts):
            pieces = [piece for _, piece in group]
            encoded = self._encode_batch(pieces)
            for (number, piece), ids in zip(group, encoded, strict=True):
                array = np.array(ids, np.uint32)
                self._check_plain(piece, array)
                arrays_of[number].append(array)
        # A text has at least one piece, be it empty.
        return [np.concatenate(arrays) for arrays in arrays_of]

    def _encode_batch(self, texts: list[str]) -> list[list[int]]:
        """The ids of each text, by the library, in threads."""
        with trial.panics_named(TOKENIZER):
            encodings = self.inner.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def _groups(self, texts: list[str]) -> Iterator[list[tuple[int, str]]]:
        """Pieces of the texts with the numbers of their texts, about PIECE characters."""
        group = []
        size = 0
        for number, text in enumerate(texts):
            for piece in self._pieces(text):
                group.append((number, piece))
                size += len(piece)
                if size >= PIECE:
                    yield group
                    group = []
                    size = 0
        if group:
            yield group

    def _pieces(self, text: str) -> Iterator[str]:
        """`text`, cut at spaces where that does not change the ids around the cut."""
        start = 0
        while len(text) - start > PIECE:
            stop = self._cut(text, start + PIECE)
            yield text[start:stop]
            start = stop
        if start < len(text) or not text:
            yield text[start:]

    def _cut(self, text: str, earliest: int) -> int:
        """The first position from `earliest` on where text can be cut, or its end."""
        spaces = SPACE.finditer(text, earliest)
        for space in itertools.islice(spaces, TRIES):
            if self._divides(text, space.start()):
                return space.start()
        return len(text)

    def _divides(self, text: str, position: int) -> bool:
        """Whether the two sides have the same ids apart as together, near the cut."""
        before = text[position - AROUND : position]
        after = text[position : position + AROUND]
        texts = [before + after, before, after]
        together, first, second = self._encode_batch(texts)
        return together == first + second

    def _check_plain(self, text: str, ids: np.ndarray) -> None:
        """Raises ConfigError where a special token is among the ids of a text."""
        spelled = ids[np.isin(ids, self._special)]
        if not spelled.size:
            return
        id_ = int(spelled[0])
        name = self.inner.id_to_token(id_)
        cause = "spells"
        if id_ == self.unknown_id:
            cause = "has a word that is unknown to this tokenizer, for which it has"
        raise ConfigError(
            f"a text {cause} {shown(name)}, which would be taken for the special token"
            f" itself ({shown(text, 60)}): choose another tokenizer,"
            " or remove the word from the text"
        )

    @property
    def rules(self) -> str:
        """All that decides the ids of a text, as JSON, without what surrounds it."""
        values = json.loads(self.inner.to_str())
        values["post_processor"] = None
        return json.dumps(values)

    def stock(self) -> bytes:
        """A tokenizer.json for other programs.

        With it they put `before` in front of a text, and nothing else around it, whatever
        the post-processor of this one does.
        """
        if not self.before and not self.inner.num_special_tokens_to_add(False):
            return self.inner.to_str().encode()
        inner = copy.deepcopy(self.inner)
        template = None
        if self.before:
            names = [str(self.inner.id_to_token(id_)) for id_ in self.before]
            template = processors.TemplateProcessing(
                single=" ".join([*names, "$A"]),  # $A is the text
                special_tokens=list(zip(names, self.before, strict=True)),
            )
        inner.post_processor = template  # pyright: ignore[reportAttributeAccessIssue]
        return inner.to_str().encode()

    def save(self, directory: epath.Path) -> None:
        """Writes tokenizer.json, whole or not at all.

        Raises:
          ConfigError: `directory` has another tokenizer already.
        """
        file = directory / TOKENIZER
        content = self.inner.to_str().encode()
        if file.exists() and file.read_bytes() != content:
            raise ConfigError(
                f"{file} is another tokenizer than the requested one: choose another --out"
            )
        files.write(file, content)


def framing(inner: HFTokenizer) -> tuple[Ids, Ids]:
    """The ids that a tokenizer's own post-processor puts before a text, and after it."""
    if not inner.num_special_tokens_to_add(False):
        return (), ()
    encoding = inner.encode(_any_word(inner))
    special = np.array(encoding.special_tokens_mask, bool)
    # The word is between them. Without one, all special tokens count as before it.
    plain = np.flatnonzero(~special)
    start = stop = len(encoding.ids)
    if plain.size:
        start = int(plain[0])
        stop = int(plain[-1]) + 1
    before = encoding.ids[:start]
    after = encoding.ids[stop:]
    return tuple(before), tuple(after)


def _any_word(inner: HFTokenizer) -> str:
    """A word of which the tokenizer makes ids; empty where there is none."""
    for word in ("a", *inner.get_vocab()):
        if inner.encode(word, add_special_tokens=False).ids:
            return word
    return ""


def of_bytes() -> Tokenizer:
    """One id per byte of UTF-8, and 256 for the end of a document."""
    vocabulary = {character: byte for byte, character in _characters_of_bytes()}
    vocabulary[END_OF_DOCUMENT] = 256
    inner = HFTokenizer(models.BPE(vocabulary, []))
    inner.add_special_tokens([END_OF_DOCUMENT])
    return Tokenizer(_byte_level(inner), 256, 256)


def _byte_level(inner: HFTokenizer) -> HFTokenizer:
    """The same tokenizer, which now writes bytes as printable characters."""
    pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.pre_tokenizer = pre_tokenizer  # pyright: ignore[reportAttributeAccessIssue]
    inner.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    return inner


def _characters_of_bytes() -> Iterator[tuple[int, str]]:
    """Each byte with the printable character by which a byte-level tokenizer writes it.

    It is the byte's own character where that is printable, else one from 256 on.
    """
    spare = itertools.count(256)
    for byte in range(256):
        # Neither spaces and control characters nor the soft hyphen, 173.
        printable = 33 <= byte <= 126 or 161 <= byte <= 172 or byte >= 174
        code = byte if printable else next(spare)
        yield byte, chr(code)


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE of exactly `vocab_size` ids; the end-of-document id is 0.

    Raises:
      ConfigError: the text is too small for that many ids.
    """
    inner = _byte_level(HFTokenizer(models.BPE()))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_DOCUMENT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    trained_size = inner.get_vocab_size()
    if trained_size != vocab_size:
        raise ConfigError(
            f"the training split yields {trained_size} BPE ids, not {vocab_size}:"
            " lower --vocab_size"
        )
    return Tokenizer(inner, BPE_EOS_ID, BPE_EOS_ID)


def load(
    path: epath.Path,
    eos_id: int | None = None,
    start_id: int | None = None,
    before: Ids | None = (),
) -> Tokenizer:
    """Reads a tokenizer.json.

    Args:
      path: of the file.
      eos_id: ends a document; None takes the special token with a usual name.
      start_id: stands before a text that has nothing before it; None takes `eos_id`.
      before: what each document begins with; None takes what the tokenizer puts there.

    Raises:
      ConfigError: the file is missing or not a tokenizer, or it has no end-of-document
        token.
    """
    inner = _read(path)
    if eos_id is None:
        eos_id = _usual_eos_id(inner)
    if eos_id is None:
        raise ConfigError(
            f"{shown(path)} has no special token that ends a document"
            f" ({', '.join(END_NAMES)}): give the id of one with --eos_id"
        )
    if eos_id not in inner.get_vocab().values():
        raise ConfigError(
            f"{shown(path)} has no id {eos_id}:"
            " give the id of its end-of-document token with --eos_id"
        )
    if start_id is None:
        start_id = eos_id
    if before is None:
        with trial.panics_named(path):
            before, _ = framing(inner)
    return Tokenizer(inner, eos_id, start_id, before)


def _usual_eos_id(inner: HFTokenizer) -> int | None:
    """The id of the first special token of END_NAMES; an ordinary token is none."""
    special = {}
    for id_, token in inner.get_added_tokens_decoder().items():
        if token.special:
            special[token.content] = id_
    for name in END_NAMES:
        if name in special:
            return special[name]
    return None


def _read(path: epath.Path) -> HFTokenizer:
    """Reads a file that anyone may have made."""
    content = trial.content(path)
    trial.check(path, content)
    with trial.panics_named(path):
        try:
            inner = HFTokenizer.from_str(content)
        except Exception as error:  # the library raises bare Exception
            raise ConfigError(
                f"{shown(path)} is not a tokenizer.json of the tokenizers library:"
                f" {shown(error)}"
            ) from error
    highest = max(inner.get_vocab().values(), default=0)
    if not 0 < highest < MOST_IDS:
        raise ConfigError(
            f"{shown(path)} has no usable vocabulary, its highest id is {highest:,}:"
            " choose another tokenizer"
        )
    # Documents are used as a whole, and windows are cut by `store`.
    inner.no_truncation()
    inner.no_padding()
    return inner
