"""How likely are these tokens?

Log-likelihoods of tokens: losses of chosen predictions, with few programs and few logits,
on all devices of a mesh.

B rows, T positions, C predictions of a row, D width, N sizes of rows, K distinct lengths.
"""

import math
from collections.abc import Iterable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from sparsecod_jax.data.pipeline import local_rows, to_devices
from sparsecod_jax.model.transformer import Transformer
from sparsecod_jax.parallel.sharding import batch_sharding, ways
from sparsecod_jax.pretrained.load import LoadedModel

TOKENS = 2**13  # on a device at once, unless a single row is longer
LENGTHS = 8  # that rows are padded to
MULTIPLE = 8  # each of these lengths is a multiple of it
FEW = 4  # rows that need at most one in FEW predictions have only so many computed


class Row(NamedTuple):
    """A sequence that the model reads, and the predictions of it that are scored.

    Attributes:
      predictions: positions, each with an id that may come after it.
    """

    tokens: tuple[int, ...]
    predictions: tuple[tuple[int, int], ...]


class Score(NamedTuple):
    """The scores of a row's predictions, in their order, [C].

    Attributes:
      losses: float64, nats.
      hits: whether the id is the likeliest.
    """

    losses: np.ndarray
    hits: np.ndarray


_Scored = list[tuple[int, Score]]  # numbers of rows, and their scores


class _Batch(NamedTuple):
    """Rows that are computed on the devices.

    Attributes:
      numbers: of the rows.
      scores: losses and hits, [B, C] each.
    """

    numbers: list[int]
    scores: tuple[jax.Array, jax.Array]


def scores(model: LoadedModel, rows: list[Row]) -> Iterator[_Scored]:
    """The scores of all rows, each with the row's number, a batch at a time.

    The longest rows come first, so that what does not fit in memory fails at once. There
    are at most 2 * LENGTHS shapes of batches, so at most so many programs.

    To be called, and iterated over, under `model.mesh`.
    """
    # A row is padded to one length that its tokens and its predictions fit in.
    counts = np.array([len(row.predictions) for row in rows], int)
    lengths = np.array([len(row.tokens) for row in rows], int)
    padded = pad(np.maximum(lengths, counts))
    # Most rows of a task have few predictions, at their end. The head is the costliest part
    # of a small model, so their logits are computed at few positions.
    few = counts * FEW <= padded
    shapes = sorted(set(zip(padded.tolist(), few.tolist(), strict=True)), reverse=True)
    # A batch is read only after the next one was sent to the devices, which thus never wait.
    waiting = None
    for T, is_few in shapes:
        numbers = np.flatnonzero((padded == T) & (few == is_few)).tolist()
        C = T // FEW if is_few else T
        for batch in _batches(model, rows, numbers, T, C):
            if waiting:
                yield _read(rows, waiting)
            waiting = batch
    if waiting:
        yield _read(rows, waiting)


def pad(sizes_N: np.ndarray) -> np.ndarray:
    """To which length each size is padded, [N].

    There are at most LENGTHS lengths, multiples of MULTIPLE, chosen so that padding adds
    as little as possible in all. Sizes 5, 9, 9 and 8 are padded to 8, 16, 16 and 8; with
    LENGTHS = 1 all would be padded to 16.

    Args:
      sizes_N: tokens of each row.
    """
    if not len(sizes_N):
        return sizes_N
    rounded_N = -(-sizes_N // MULTIPLE) * MULTIPLE
    values_K, counts_K = np.unique(rounded_N, return_counts=True)
    lengths = _best_lengths(values_K, counts_K)
    # Each size goes to the smallest of the lengths that holds it.
    return lengths[np.searchsorted(lengths, rounded_N)]


def _best_lengths(values_K: np.ndarray, counts_K: np.ndarray) -> np.ndarray:
    """The lengths, in ascending order, by dynamic programming.

    The K distinct sizes, in ascending order, are cut into groups of neighbours, of which all
    rows are padded to the largest size. The best cut into g groups is the best over all
    last groups, each with the best cut of what is before it into g - 1 groups.

    Args:
      values_K: distinct sizes, in ascending order.
      counts_K: how many rows have each.
    """
    K = len(values_K)
    before = np.concatenate([[0], np.cumsum(counts_K)])  # rows below each value
    # group_cost[i, j]: the tokens of the rows with values i to j - 1, all padded to the
    # largest of these, value j - 1. A group can't be empty.
    largest = np.concatenate([[0], values_K])
    group_cost = largest[None, :] * (before[None, :] - before[:, None])
    group_cost = np.where(np.tri(K + 1, dtype=bool), np.inf, group_cost)
    # cost[j]: the fewest tokens of the rows with the j smallest values, in as many groups
    # as there were rounds; begins[round][j]: where the last of these groups begins.
    cost = np.full(K + 1, np.inf)
    cost[0] = 0
    begins = []
    for _ in range(min(LENGTHS, K)):
        total = cost[:, None] + group_cost
        begins.append(total.argmin(axis=0))
        cost = total.min(axis=0)
    # From the last group backwards: where one begins, the one before it ends.
    lengths, end = [], K
    for begin in reversed(begins):
        lengths.append(values_K[end - 1])
        end = begin[end]
    return np.array(lengths[::-1])


def _batches(
    model: LoadedModel, rows: list[Row], numbers: list[int], T: int, C: int
) -> Iterator[_Batch]:
    """Batches of one shape, not yet waited for.

    Args:
      numbers: of the rows to be scored.
      T: tokens of a row, C: its predictions, both with padding.
    """
    sharding, devices = batch_sharding(model.mesh), ways("batch")
    # As many rows per device as TOKENS allows, and no more than there are.
    rows_each = min(max(TOKENS // T, 1), math.ceil(len(numbers) / devices))
    B = devices * rows_each
    here = local_rows(sharding, B)  # the rows that this process puts on its devices
    for first in range(0, len(numbers), B):
        part = numbers[first : first + B]
        arrays = _arrays([rows[number] for number in part], B, T, C)
        local = tuple(array[here] for array in arrays)
        inputs = to_devices(local, here, sharding, B)
        yield _Batch(part, _losses_and_hits(model.net, model.params, *inputs))


def _arrays(
    rows: list[Row], B: int, T: int, C: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens [B, T], positions [B, C] and ids [B, C], padded with zeros."""
    tokens, positions, targets = [], [], []
    for row in rows:
        tokens.append(row.tokens)
        positions.append([position for position, _ in row.predictions])
        targets.append([target for _, target in row.predictions])
    return (
        _padded(tokens, (B, T)),
        _padded(positions, (B, C)),
        _padded(targets, (B, C)),
    )


def _padded(rows: Iterable, shape: tuple[int, int]) -> np.ndarray:
    """int32, filled up with zeros on the right and below."""
    array = np.zeros(shape, np.int32)
    for number, row in enumerate(rows):
        array[number, : len(row)] = row
    return array


def _read(rows: list[Row], batch: _Batch) -> _Scored:
    """The scores of a batch, once its devices have computed them.

    Padding is left out: rows at the end of the batch, predictions at the end of a row.
    """
    losses_BC, hits_BC = (np.asarray(array) for array in batch.scores)
    read = []
    for number, losses_C, hits_C in zip(
        batch.numbers, losses_BC, hits_BC, strict=False
    ):
        count = len(rows[number].predictions)
        score = Score(losses_C[:count].astype(np.float64), hits_C[:count])
        read.append((number, score))
    return read


@partial(jax.jit, static_argnums=0)
def _losses_and_hits(net: Transformer, params, tokens_BT, positions_BC, targets_BC):
    """Losses in nats and hits of chosen predictions, [B, C] each."""
    return net.apply(
        {"params": params},
        tokens_BT,
        positions_BC,
        targets_BC,
        method="losses_and_hits_at",
    )
