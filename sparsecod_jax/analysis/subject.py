"""Which model is looked at, with which sequences?

N sequences, T positions, B rows on the devices at once.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from sparsecod_jax import config
from sparsecod_jax.analysis import network
from sparsecod_jax.data.pipeline import local_rows, segments, to_devices
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.model.transformer import Transformer
from sparsecod_jax.parallel.sharding import batch_sharding, ways
from sparsecod_jax.pretrained.load import LoadedModel, ModelSource, load_model

STATES_BYTES = (
    2**28
)  # of a device, for the stream after every block of the rows that it holds


class Rows(NamedTuple):
    """Sequences on the devices; what is computed for the rows after the first `valid` is thrown away."""

    tokens: Any  # [B, T]
    segments: Any  # [B, T], None without document masking
    valid: int


@dataclasses.dataclass(frozen=True)
class Subject:
    """A finished model with float32 arithmetic (float64 if it was trained so), and the sequences that it is looked at with."""

    net: Transformer
    params: Any
    mesh: Mesh
    tokens_NT: np.ndarray  # int32
    eos_id: int | None  # ends a document, where attention stays within documents
    step: int  # of the checkpoint
    weights: str  # a digest of the parameters

    @property
    def cfg(self) -> config.Model:
        return self.net.cfg

    def documents(self, tokens_NT: np.ndarray) -> np.ndarray | None:
        """A number for each document of a sequence, [N, T]; None where attention does not stay within documents."""
        return None if self.eos_id is None else segments(tokens_NT, self.eos_id)

    def blocks(self, doing: str) -> Iterable[int]:
        """The numbers of the blocks, with a progress bar for whoever watches."""
        return tqdm(
            range(self.cfg.n_layers),
            desc=doing,
            unit="block",
            leave=False,
            disable=None,
        )

    def rows(self, tokens_NT: np.ndarray) -> Iterator[Rows]:
        """The sequences in order, as many at a time as STATES_BYTES allows; all batches have one shape."""
        cfg, (count, length) = self.cfg, tokens_NT.shape
        sharding, devices = batch_sharding(self.mesh), ways("batch")
        row_bytes = (
            (cfg.n_layers + 1)
            * length
            * cfg.d_model
            * np.dtype(cfg.residual_dtype).itemsize
        )
        batch = devices * min(
            max(STATES_BYTES // row_bytes, 1), math.ceil(count / devices)
        )
        here = local_rows(sharding, batch)
        for first in range(0, count, batch):
            part = tokens_NT[(first + here) % count]
            tokens, masks = to_devices(
                (part, self.documents(part)), here, sharding, batch
            )
            yield Rows(tokens, masks, min(batch, count - first))


def load(source: ModelSource, tokens_NT: np.ndarray) -> Subject:
    """A model laid out over all devices, once it is known to take these tokens.

    Raises:
      ConfigError: it does not take them, or can't be loaded.
    """
    _check_tokens(source, tokens_NT)
    return of_model(load_model(source), tokens_NT)


def of_model(model: LoadedModel, tokens_NT: np.ndarray) -> Subject:
    """A model that is loaded already, with the sequences that it is looked at with.

    Args:
      tokens_NT: integers [N, T].

    Raises:
      ConfigError: the model does not take these tokens.
    """
    source = model.source
    _check_tokens(source, tokens_NT)
    masking = source.model.document_masking
    return Subject(
        model.net,
        model.params,
        model.mesh,
        tokens_NT.astype(np.int32),
        source.tokenizer().eos_id if masking else None,
        model.step,
        model.weights,
    )


def _check_tokens(source: ModelSource, tokens_NT: np.ndarray) -> None:
    is_table = tokens_NT.ndim == 2 and np.issubdtype(tokens_NT.dtype, np.integer)
    if not is_table or min(tokens_NT.shape) == 0:
        kind = f"{tokens_NT.dtype} {list(tokens_NT.shape)}"
        raise ConfigError(f"the tokens are {kind}: give integers [N, T]")
    smallest, largest = tokens_NT.min(), tokens_NT.max()
    vocab_size = source.model.vocab_size
    if smallest < 0 or largest >= vocab_size:
        raise ConfigError(
            f"the tokens reach from {smallest} to {largest}: "
            f"use ids from 0 to {vocab_size - 1}"
        )
    length = tokens_NT.shape[1]
    if source.experiment is None and length > source.max_seq_len:
        raise ConfigError(
            f"{source.path} takes at most {source.max_seq_len} tokens, not {length}: "
            "shorten the sequences"
        )


def per_sequence(
    subject: Subject, tokens_NT: np.ndarray, measure: Callable[[Rows, jax.Array], Any]
) -> np.ndarray:
    """What `measure` gives for rows and their states, [..., B], for all sequences: [..., N] float64."""
    parts = []
    for rows in subject.rows(tokens_NT):
        states_LBTD = network.states(
            subject.net, subject.params, rows.tokens, rows.segments
        )
        parts.append(
            np.asarray(measure(rows, states_LBTD), np.float64)[..., : rows.valid]
        )
    return np.concatenate(parts, axis=-1)
