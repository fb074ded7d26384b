"""In which order is it read, and by which process?

One global stream, whatever the number of processes: shuffle by seed and epoch, repeat, then step s is rows s*B ... (s+1)*B - 1, of which
each process reads those that its devices hold. The position in the stream is one number, so nothing else needs to be saved.
"""

import concurrent.futures
from collections.abc import Iterator
from typing import Any

import grain
import jax
import numpy as np

from sparsecod_jax.data.store import Windows

ENDLESS = 2**62  # half of what Grain can count to, as it rounds
READERS = 16  # threads, and batches kept ready: an object store answers a thread only some fifty times a second


def example_stream(windows: Windows, seed: int) -> grain.MapDataset:
    """The endless, globally shuffled sequence of windows; each epoch has an order of its own."""
    return grain.MapDataset.source(windows).seed(seed).shuffle().repeat()


def local_rows(sharding: jax.sharding.Sharding, batch: int) -> np.ndarray:
    """The rows of a batch laid out by `sharding` that the devices of this process hold: each once, in order."""
    held = sharding.devices_indices_map((batch,))
    return np.unique(
        np.concatenate(
            [
                np.arange(batch)[held[device][0]]
                for device in sharding.addressable_devices
            ]
        )
    )


def to_devices(
    local: Any, rows: np.ndarray, sharding: jax.sharding.Sharding, batch: int
) -> Any:
    """A tree of global arrays [batch, ...] from this process's `rows` of them."""

    def assemble(values: np.ndarray) -> jax.Array:
        def part(index):
            return values[np.searchsorted(rows, np.arange(batch)[index[0]])]

        return jax.make_array_from_callback((batch, *values.shape[1:]), sharding, part)

    return jax.tree.map(assemble, local)


def batches(
    windows: Windows, seed: int, batch: int, first_example: int, rows: np.ndarray
) -> Iterator[np.ndarray]:
    """These rows of each global batch from `first_example` on, [len(rows), T + 1] int32."""
    windows.watch()
    stream, here = example_stream(windows, seed), len(rows)

    def example(k: int) -> np.ndarray:
        step, place = divmod(k, here)
        return np.asarray(stream[first_example + step * batch + int(rows[place])])

    return iter(
        grain.MapDataset.range(ENDLESS)
        .map(example)
        .batch(here)
        .to_iter_dataset(grain.ReadOptions(READERS, READERS))
    )


def evaluation_batches(
    windows: Windows, batch: int, rows: np.ndarray, max_tokens: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The split in order, once, of each batch these R rows: tokens [R, T + 1] int32 and the weight of each prediction [R, T] float32.

    Every prediction of the split counts once: the last window and the last batch are padded, with weight 0. A `max_tokens` above 0
    takes that many predictions, rounded up to whole windows, from windows spread evenly over the split.
    """
    length = windows.seq_len
    total = windows.total_tokens - 1
    windows_in_all = -(-total // length)
    count = -(-min(total, max_tokens or total) // length)

    def window(number: int) -> np.ndarray:
        index = int(number) * windows_in_all // count
        return windows.tokens(index * length, (index + 1) * length + 1)

    with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
        for first in range(0, count, batch):
            tokens = np.zeros((len(rows), length + 1), np.int32)
            weights = np.zeros((len(rows), length), np.float32)
            for place, held_out in enumerate(
                pool.map(window, first + rows[first + rows < count])
            ):
                tokens[place, : len(held_out)] = held_out
                weights[place, : len(held_out) - 1] = 1
            yield tokens, weights


def segments(tokens_BT: np.ndarray, eos_id: int) -> np.ndarray:
    """A number for each document of a window, [B, T] int32; an end-of-document token belongs to the document that it ends."""
    ends = (tokens_BT == eos_id).astype(np.int32)
    return np.cumsum(ends, axis=1, dtype=np.int32) - ends
