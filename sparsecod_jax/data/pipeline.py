"""In which order are the tokens read, and by which process?

Data pipeline: one global sequence of windows, whatever the number of processes. It is
shuffled by seed and epoch, and repeated. Step s takes rows s*B ... (s+1)*B - 1, of which
each process reads those that its devices hold. The position in the sequence is one
number, so nothing else needs to be saved.

B rows of a global batch, R rows of it that this process reads, T positions.
"""

import concurrent.futures
from collections.abc import Iterator
from typing import Any

import grain
import jax
import numpy as np

from sparsecod_jax.data.store import Windows

ENDLESS = 2**62  # half of what Grain can count to, as it rounds up
# Threads, and batches kept ready: an object store answers one thread only about fifty
# times per second.
READERS = 16


def example_stream(windows: Windows, seed: int) -> grain.MapDataset:
    """The endless, globally shuffled sequence of windows; each epoch has its own order."""
    in_order = grain.MapDataset.source(windows)
    return in_order.seed(seed).shuffle().repeat()


def local_rows(sharding: jax.sharding.Sharding, batch: int) -> np.ndarray:
    """The rows of a batch that devices of this process hold.

    Args:
      sharding: of the batch.
      batch: B.

    Returns:
      [R] row numbers, each once, in ascending order.
    """
    every_row = np.arange(batch)
    slices_of_device = sharding.devices_indices_map((batch,))
    held = []
    for device in sharding.addressable_devices:
        (rows,) = slices_of_device[device]
        held.append(every_row[rows])
    # Devices along a model axis hold the same rows.
    return np.unique(np.concatenate(held))


def to_devices(
    local: Any, rows: np.ndarray, sharding: jax.sharding.Sharding, batch: int
) -> Any:
    """A tree of global arrays from this process's rows of them.

    Args:
      local: arrays [R, ...].
      rows: [R] their row numbers, ascending.
      sharding: of the global arrays.
      batch: B.

    Returns:
      Arrays [B, ...].
    """

    def assemble(values: np.ndarray) -> jax.Array:
        """A global array from local rows."""

        def part(index):
            # The rows of one device, by their positions among those of this process.
            wanted = np.arange(batch)[index[0]]
            positions = np.searchsorted(rows, wanted)
            return values[positions]

        shape = (batch, *values.shape[1:])
        return jax.make_array_from_callback(shape, sharding, part)

    return jax.tree.map(assemble, local)


def batches(
    windows: Windows, seed: int, batch: int, first_example: int, rows: np.ndarray
) -> Iterator[np.ndarray]:
    """These rows of each global batch from `first_example` on.

    Args:
      windows: of the training split.
      seed: of the order.
      batch: B.
      first_example: the position in the sequence at which to begin.
      rows: [R] row numbers of this process.

    Yields:
      [R, T + 1] int32; endless.
    """
    windows.watch()
    stream = example_stream(windows, seed)
    local = len(rows)

    def example(k: int) -> np.ndarray:
        """The k-th window that this process reads."""
        step, position = divmod(k, local)
        row = int(rows[position])
        first_of_step = first_example + step * batch
        return np.asarray(stream[first_of_step + row])

    examples = grain.MapDataset.range(ENDLESS).map(example)
    options = grain.ReadOptions(READERS, READERS)
    return iter(examples.batch(local).to_iter_dataset(options))


def evaluation_batches(
    windows: Windows, batch: int, rows: np.ndarray, max_tokens: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The split in order, once; of each batch these R rows.

    Every prediction of the split counts once: the last window and the last batch are
    padded with weight 0.

    Args:
      windows: of the validation split.
      batch: B.
      rows: [R] row numbers of this process.
      max_tokens: how many predictions to take, rounded up to whole windows, which are
        spread evenly over the split; 0 takes all.

    Yields:
      Tokens [R, T + 1] int32, and the weight of each prediction [R, T] float32.
    """
    length = windows.seq_len
    predictions = windows.total_tokens - 1
    available = -(-predictions // length)
    count = -(-min(predictions, max_tokens or predictions) // length)

    def window(number: int) -> np.ndarray:
        """The number-th of the `count` windows that are taken."""
        index = int(number) * available // count
        start = index * length
        return windows.tokens(start, start + length + 1)

    with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
        for first in range(0, count, batch):
            tokens = np.zeros((len(rows), length + 1), np.int32)
            weights = np.zeros((len(rows), length), np.float32)
            # The last batch has fewer.
            numbers = first + rows[first + rows < count]
            for row, held_out in enumerate(pool.map(window, numbers)):
                tokens[row, : len(held_out)] = held_out
                weights[row, : len(held_out) - 1] = 1
            yield tokens, weights


def segments(tokens_BT: np.ndarray, eos_id: int) -> np.ndarray:
    """The number of its document within the window, for each token: [B, T] int32.

    An end-of-document token belongs to the document that it ends.
    """
    ends_BT = (tokens_BT == eos_id).astype(np.int32)
    return np.cumsum(ends_BT, axis=1, dtype=np.int32) - ends_BT
