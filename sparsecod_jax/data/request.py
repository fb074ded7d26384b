"""What can `sparsecod data` make?

Data request: the options of the command, checked when they are put together.
"""

import dataclasses
from typing import Literal

from sparsecod_jax.errors import ConfigError

Dedup = Literal["near", "exact", "off"]
SMALLEST_BPE = 257  # the 256 bytes and an end of document


@dataclasses.dataclass(frozen=True)
class Request:
    """The options of `sparsecod data`; see `sources` and `tokenizer` for their names.

    Attributes:
      source: a name, or the path of a file or folder.
      tokenizer: "bytes", "bpe", or the path of a tokenizer.json.
      vocab_size: of a BPE that is trained, 0 for other tokenizers.
      eos_id: where a tokenizer.json does not tell it.
      split_seed: decides which documents are held out.
      validation_fraction: the expected share of held-out documents.
      text_field: the field or column of rows that holds the documents.
      split: of the source; None is its training split.
      separator: of the documents in a text file.
      dedup: whether near-duplicates are dropped, or only exact ones, or none.
      max_documents: how many documents are read.
      max_tokens: of the training split.

    Raises:
      ConfigError: an option has no meaning.
    """

    source: str
    tokenizer: str = "bpe"
    vocab_size: int = 0
    eos_id: int | None = None
    split_seed: int = 0
    validation_fraction: float = 0.05
    text_field: str = "text"
    split: str | None = None
    separator: str | None = None
    dedup: Dedup = "near"
    max_documents: int | None = None
    max_tokens: int | None = None

    def __post_init__(self):
        if self.tokenizer == "bpe" and self.vocab_size < SMALLEST_BPE:
            raise ConfigError(
                f"--vocab_size={self.vocab_size} can't hold the 256 bytes and an end of"
                f" document: use {SMALLEST_BPE} or more"
            )
        if not 0 < self.validation_fraction < 1:
            raise ConfigError(
                f"--validation_fraction={self.validation_fraction} is not between 0 and 1:"
                " try 0.05"
            )
        _check_limit("max_documents", self.max_documents)
        _check_limit("max_tokens", self.max_tokens)
        if self.separator == "":
            raise ConfigError(
                "--separator is empty: name what lies between documents, or leave it out"
            )


def _check_limit(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise ConfigError(f"--{name}={value} is below 1: raise it, or leave it out")
