"""How likely are these tokens? Losses of chosen predictions, few programs and few logits, on all devices of a mesh.

B rows, T positions, C of them whose prediction is asked for, D width.
"""

import math
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparsecod_jax.data.pipeline import local_rows, to_devices
from sparsecod_jax.model.loss import losses_and_hits
from sparsecod_jax.model.transformer import Transformer
from sparsecod_jax.parallel.sharding import batch_sharding, constrain, ways
from sparsecod_jax.pretrained.load import LoadedModel

TOKENS = 2**13  # on a device at once, unless a single row is longer
LENGTHS = 8  # that rows are padded to
MULTIPLE = 8  # of which each of them is one
FEW = 4  # where at most one in FEW predictions is asked for, only so many are computed


class Row(NamedTuple):
    """A sequence that the model reads, and what is asked about it."""

    tokens: tuple[int, ...]
    asked: tuple[
        tuple[int, int], ...
    ]  # positions, each with an id that may come after it


class Score(NamedTuple):
    """The answers to a row, in its order."""

    losses: np.ndarray  # float64, nats
    hits: np.ndarray  # whether the id is the likeliest


def scores(finished: LoadedModel, rows: list[Row]) -> Iterator[list[tuple[int, Score]]]:
    """The scores of all rows, each with the row's number, a batch at a time and the longest rows first.

    To be called, and gone through, under `finished.mesh`. There are at most 2 * LENGTHS shapes of batches.
    """
    sizes = np.array([max(len(row.tokens), len(row.asked)) for row in rows], int)
    padded = pad(sizes)
    few = np.array([len(row.asked) for row in rows], int) * FEW <= padded
    waiting = None
    for T, is_few in sorted(
        {*zip(padded.tolist(), few.tolist(), strict=True)}, reverse=True
    ):
        numbers = np.flatnonzero((padded == T) & (few == is_few))
        for batch in _batches(
            finished, rows, numbers.tolist(), T, T // FEW if is_few else T
        ):
            if waiting:  # the devices compute the next batch while the last one is read
                yield _read(rows, *waiting)
            waiting = batch
    if waiting:
        yield _read(rows, *waiting)


def pad(sizes_N: np.ndarray) -> np.ndarray:
    """To which length each size is padded, [N]: the LENGTHS multiples of MULTIPLE that add least in all."""
    rounded_N = -(-sizes_N // MULTIPLE) * MULTIPLE
    values, counts = np.unique(rounded_N, return_counts=True)
    before = np.concatenate([[0], np.cumsum(counts)])
    # cost[j] covers the j smallest values, the last of its lengths being the j-th; a row of `group` says where that one's values begin.
    group_cost = np.concatenate([[0], values])[None, :] * (
        before[None, :] - before[:, None]
    )
    group_cost = np.where(np.tri(len(before), dtype=bool), np.inf, group_cost)
    cost, begins = np.full(len(before), np.inf), []
    cost[0] = 0
    for _ in range(min(LENGTHS, len(values))):
        begins.append((cost[:, None] + group_cost).argmin(axis=0))
        cost = (cost[:, None] + group_cost).min(axis=0)
    chosen, end = [], len(values)
    for begin in reversed(begins):
        chosen.append(values[end - 1])
        end = begin[end]
    chosen = np.array(chosen[::-1], int)
    return chosen[np.searchsorted(chosen, rounded_N)] if len(values) else rounded_N


def _batches(
    finished: LoadedModel, rows: list[Row], numbers: list[int], T: int, C: int
) -> Iterator[tuple[list[int], Any]]:
    """Numbers of rows, and their scores on the devices, not yet waited for; all batches have one shape."""
    sharding, devices = batch_sharding(finished.mesh), ways("batch")
    size = devices * min(max(TOKENS // T, 1), math.ceil(len(numbers) / devices))
    here = local_rows(sharding, size)
    for first in range(0, len(numbers), size):
        part = numbers[first : first + size]
        tokens = _array((rows[number].tokens for number in part), (size, T))
        positions = _array(
            ([position for position, _ in rows[number].asked] for number in part),
            (size, C),
        )
        targets = _array(
            ([target for _, target in rows[number].asked] for number in part), (size, C)
        )
        yield (
            part,
            _losses_and_hits(
                finished.net,
                finished.params,
                *to_devices(
                    (tokens[here], positions[here], targets[here]), here, sharding, size
                ),
            ),
        )


def _array(rows: Iterable, shape: tuple[int, int]) -> np.ndarray:
    """int32, filled up with zeros on the right and below."""
    array = np.zeros(shape, np.int32)
    for number, row in enumerate(rows):
        array[number, : len(row)] = row
    return array


def _read(
    rows: list[Row], numbers: list[int], found: tuple[jax.Array, jax.Array]
) -> list[tuple[int, Score]]:
    losses_BC, hits_BC = (np.asarray(z_BC) for z_BC in found)
    counts = [len(rows[number].asked) for number in numbers]
    return [
        (
            number,
            Score(losses_BC[place, :count].astype(np.float64), hits_BC[place, :count]),
        )
        for place, (number, count) in enumerate(zip(numbers, counts, strict=True))
    ]


@partial(jax.jit, static_argnums=0)
def _losses_and_hits(net: Transformer, params, tokens_BT, positions_BC, targets_BC):
    hidden: Any = net.apply({"params": params}, tokens_BT, method="hidden")
    h_BCD = jnp.take_along_axis(hidden[0], positions_BC[..., None], axis=1)
    return losses_and_hits(
        constrain(h_BCD, "batch", "length", "width"), params["head"], targets_BC
    )
