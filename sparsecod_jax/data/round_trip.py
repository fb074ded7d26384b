"""Do a tokenizer's ids give the text back? What they lose the model never sees, and bits per byte count it all the same."""

import dataclasses
import unicodedata
from collections import Counter

from sparsecod_jax.data.tokenizer import Tokenizer
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.shell.shown import shown

MOST_LOST = 0.1  # share of characters from which a tokenizer does not fit the text


@dataclasses.dataclass(frozen=True)
class RoundTrip:
    """What became of some documents."""

    documents: int
    returned: int  # came back as they were
    characters: int  # without spaces, whatever their case
    lost: int  # of them, what did not come back
    example: str  # the beginning of a document that lost most


def look(encoder: Tokenizer, texts: list[str]) -> RoundTrip:
    """Encodes and decodes documents."""
    returned, characters, lost, worst = 0, 0, 0, (0.0, "")
    for text, ids in zip(texts, encoder.encode(texts), strict=True):
        back = encoder.decode(ids[len(encoder.before) : -1].tolist())
        before, after = _letters(text), _letters(back)
        missing, whole = (before - after).total(), before.total()
        returned += back == text
        characters, lost = characters + whole, lost + missing
        worst = max(worst, (missing / max(whole, 1), shown(text, 80)))
    return RoundTrip(len(texts), returned, characters, lost, worst[1] if lost else "")


def _letters(text: str) -> Counter[str]:
    """Its characters without spaces, equal where they differ in case or way of writing alone."""
    return Counter("".join(unicodedata.normalize("NFKC", text).casefold().split()))


def judge(found: RoundTrip, tokenizer: str) -> str | None:
    """What people should know; None where every document came back.

    Raises:
      ConfigError: so much is lost that the tokenizer is none for this text.
    """
    share = found.lost / max(found.characters, 1)
    sample = f"of {found.documents:,} documents that were looked at, {found.documents - found.returned:,}"
    if found.lost:
        sentence = (
            f"the tokenizer {shown(tokenizer)} does not give the text back: {sample} differ, and {found.lost:,} of {found.characters:,}"
            f" characters ({share:.1%}) are lost, as in {found.example!r}"
        )
        if share > MOST_LOST:
            raise ConfigError(
                f"{sentence}: choose a tokenizer that knows them, such as --tokenizer=bpe"
            )
        return f"warning: {sentence}; bits per byte count them as predicted, so they are too low by about as much"
    if found.returned < found.documents:
        return f"the tokenizer {shown(tokenizer)} changes spaces, case or ways of writing: {sample} come back so; no character is lost"
    return None
