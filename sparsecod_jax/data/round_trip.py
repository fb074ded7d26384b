"""Do a tokenizer's ids give the text back?

Round trip: text to ids and back. What it loses the model never sees, while bits per byte
still count the lost bytes.
"""

import dataclasses
import unicodedata
from collections import Counter

from sparsecod_jax.data.tokenizer import Tokenizer
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.shell.shown import shown

MAX_LOST = 0.1  # share of characters above which a tokenizer does not fit the text


@dataclasses.dataclass(frozen=True)
class RoundTrip:
    """What a sample of documents lost."""

    documents: int
    returned: int  # documents that came back unchanged
    characters: int  # without spaces, whatever their case
    lost: int  # characters that did not come back
    example: str  # the beginning of the document that lost the largest share


def measure(encoder: Tokenizer, texts: list[str]) -> RoundTrip:
    """Encodes and decodes documents.

    Args:
      texts: whole documents, or their beginnings.
    """
    documents = encoder.encode(texts)
    returned = 0
    characters = 0
    lost = 0
    worst = (0.0, "")  # share and text
    for text, ids in zip(texts, documents, strict=True):
        # Without what stands before and after a text.
        content = ids[len(encoder.before) : -1]
        decoded = encoder.decode(content.tolist())
        if decoded == text:
            returned += 1
        original = _letters(text)
        length = original.total()
        missing = (original - _letters(decoded)).total()
        characters += length
        lost += missing
        share = missing / max(length, 1)
        worst = max(worst, (share, shown(text, 80)))
    example = worst[1] if lost else ""
    return RoundTrip(len(texts), returned, characters, lost, example)


def _letters(text: str) -> Counter[str]:
    """Characters without spaces; case and equivalent Unicode forms make no difference."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return Counter("".join(folded.split()))


def judge(result: RoundTrip, tokenizer: str) -> str | None:
    """A warning or remark for people; None where every document came back.

    Args:
      tokenizer: its name, for messages.

    Raises:
      ConfigError: more than MAX_LOST of the characters are lost.
    """
    changed = result.documents - result.returned
    if changed == 0:
        return None
    sample = f"of {result.documents:,} sampled documents, {changed:,}"
    if not result.lost:
        return (
            f"the tokenizer {shown(tokenizer)} changes spaces, case or Unicode forms:"
            f" {sample} come back changed; no character is lost"
        )
    share = result.lost / max(result.characters, 1)
    finding = (
        f"the tokenizer {shown(tokenizer)} does not give the text back: {sample} differ,"
        f" and {result.lost:,} of {result.characters:,} characters ({share:.1%}) are lost,"
        f" as in {result.example!r}"
    )
    if share > MAX_LOST:
        raise ConfigError(
            f"{finding}: choose a tokenizer that knows them, such as --tokenizer=bpe"
        )
    return (
        f"warning: {finding}; bits per byte count them as predicted,"
        " so they are too low by about as much"
    )
