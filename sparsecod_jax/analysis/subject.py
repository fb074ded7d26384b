"""Which model is analysed, with which sequences?

Subject of an analysis: a loaded model and token ids, and the loop over batches of them.

N sequences, T positions, B rows on the devices at once, L blocks, D width.
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

# Of a device, for the residual stream after every block of the rows that it holds.
STATES_BYTES = 2**28


class Rows(NamedTuple):
    """Sequences on the devices.

    Attributes:
      tokens: [B, T].
      segments: [B, T], None without document masking.
      valid: how many rows are sequences; what is computed for those after is thrown away.
    """

    tokens: Any
    segments: Any
    valid: int


Measure = Callable[[Rows, jax.Array], Any]  # from rows and their states to [..., B]


@dataclasses.dataclass(frozen=True)
class Subject:
    """A loaded model in float32 (float64 if it was trained so), and the sequences.

    Attributes:
      tokens_NT: int32.
      eos_id: ends a document, where attention stays within documents.
      step: of the checkpoint.
      weights: a digest of the parameters.
    """

    net: Transformer
    params: Any
    mesh: Mesh
    tokens_NT: np.ndarray
    eos_id: int | None
    step: int
    weights: str

    @property
    def cfg(self) -> config.Model:
        return self.net.cfg

    def documents(self, tokens_NT: np.ndarray) -> np.ndarray | None:
        """A number for each document of a sequence, [N, T].

        None where attention does not stay within documents.
        """
        if self.eos_id is None:
            return None
        return segments(tokens_NT, self.eos_id)

    def blocks(self, score: str) -> Iterable[int]:
        """The numbers of the blocks, with a progress bar."""
        numbers = range(self.cfg.n_layers)
        return tqdm(numbers, desc=score, unit="block", leave=False, disable=None)

    def rows(self, tokens_NT: np.ndarray) -> Iterator[Rows]:
        """The sequences in order, as many at a time as STATES_BYTES allows.

        All batches have one shape, so that there is one program; the last is filled up with
        sequences from the beginning.
        """
        count = len(tokens_NT)
        sharding = batch_sharding(self.mesh)
        batch = self._batch_size(*tokens_NT.shape)
        here = local_rows(sharding, batch)
        for first in range(0, count, batch):
            part = tokens_NT[(first + here) % count]
            local = (part, self.documents(part))
            tokens, documents = to_devices(local, here, sharding, batch)
            yield Rows(tokens, documents, min(batch, count - first))

    def _batch_size(self, count: int, length: int) -> int:
        """B, a multiple of the devices over which the rows are split."""
        cfg, devices = self.cfg, ways("batch")
        itemsize = np.dtype(cfg.residual_dtype).itemsize
        row_bytes = (cfg.n_layers + 1) * length * cfg.d_model * itemsize
        that_fit = max(STATES_BYTES // row_bytes, 1)
        return devices * min(that_fit, math.ceil(count / devices))


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
        net=model.net,
        params=model.params,
        mesh=model.mesh,
        tokens_NT=tokens_NT.astype(np.int32),
        eos_id=source.tokenizer().eos_id if masking else None,
        step=model.step,
        weights=model.weights,
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
    subject: Subject, tokens_NT: np.ndarray, measure: Measure
) -> np.ndarray:
    """What `measure` returns for all sequences, [..., N] float64."""
    net, params = subject.net, subject.params
    parts = []
    for rows in subject.rows(tokens_NT):
        states_LBTD = network.states(net, params, rows.tokens, rows.segments)
        measured = np.asarray(measure(rows, states_LBTD), np.float64)
        parts.append(measured[..., : rows.valid])
    return np.concatenate(parts, axis=-1)
