"""Which split is a document in?

Splits: a seeded hash of its text decides, so that the split does not depend on the order
of the documents. Of a single document the tail is held out.
"""

import hashlib
from collections.abc import Callable

from sparsecod_jax.data.request import Request
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.shell.shown import shown

SPLITS: tuple[str, ...] = ("train", "validation")

SplitOf = Callable[[str], str]  # the split of a text


def by_hash(request: Request) -> SplitOf:
    """The split of a document by a hash of its text.

    The hash is uniform, so that a document is held out with a probability of
    `validation_fraction`, independently of all others.
    """
    key = str(request.split_seed).encode()
    limit = request.validation_fraction * 2**64

    def split_of(text: str) -> str:
        digest = hashlib.blake2b(text.encode(), digest_size=8, key=key).digest()
        return "validation" if int.from_bytes(digest) < limit else "train"

    return split_of


def head_and_tail(document: str, request: Request) -> tuple[list[str], SplitOf]:
    """Divides a single document, and tells the user how to hold out whole documents.

    Returns:
      Its two parts, and the split of each.

    Raises:
      ConfigError: it is too short.
    """
    position = _cut(document, request.validation_fraction)
    head, tail = document[:position], document[position:]
    if not head.strip() or not tail.strip():
        raise ConfigError(
            f"one document of {len(document)} characters in {shown(request.source)}"
            " is too short for two splits: add text"
        )
    advice = (
        "if it contains several documents, name what lies between them,"
        " such as --separator='<|endoftext|>'"
    )
    if request.max_documents == 1:
        advice = "raise --max_documents=1 to hold out whole documents"
    print(
        f"one document of {shown(request.source)} is read, the last {len(tail):,}"
        f" of its {len(document):,} characters are held out; {advice}",
        flush=True,
    )
    return [head, tail], lambda text: "validation" if text == tail else "train"


def _cut(document: str, validation_fraction: float) -> int:
    """Where the tail begins: at the start of a line or word where there is one nearby."""
    wanted = max(int(len(document) * (1 - validation_fraction)), 1)
    cut = wanted
    for mark in ("\n", " "):
        position = document.rfind(mark, 1, wanted)
        if position > wanted // 2:
            cut = position + 1
            break
    # The two parts are told apart by their texts, which must differ.
    if document[:cut] == document[cut:]:
        cut -= 1
    return cut
