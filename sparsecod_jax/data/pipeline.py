"""In which order is it read?

One global stream, whatever the number of hosts: shuffle by seed and epoch, repeat, then step s is rows s*B ... (s+1)*B - 1 and each
host takes its contiguous slice. The position in the stream is one number, so nothing else needs to be saved.
"""

import sys
from collections.abc import Iterator

import grain
import numpy as np

from sparsecod_jax.data.store import Windows


def example_stream(windows: Windows, seed: int) -> grain.MapDataset:
    """The endless, globally shuffled sequence of windows; each epoch has an order of its own."""
    return grain.MapDataset.source(windows).seed(seed).shuffle().repeat()


def batches(windows: Windows, seed: int, batch: int, first_example: int, host: int = 0, hosts: int = 1) -> Iterator[np.ndarray]:
    """This host's rows of each global batch from `first_example` on, [batch / hosts, T + 1] int32."""
    stream, rows = example_stream(windows, seed), batch // hosts

    def example(k: int) -> np.ndarray:
        step, row = divmod(k, rows)
        return np.asarray(stream[first_example + step * batch + host * rows + row])

    reading = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2 * rows)
    return iter(grain.MapDataset.range(sys.maxsize).map(example).batch(rows).to_iter_dataset(reading))


def evaluation_batches(windows: Windows, rows: int, max_tokens: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The split in order, once: tokens [rows, T + 1] int32 and the weight of each prediction [rows, T] float32.

    Every prediction of the split counts once: the last window and the last batch are padded, with weight 0. A `max_tokens` above 0
    takes that many predictions, rounded up to whole windows, from windows spread evenly over the split.
    """
    length = windows.seq_len
    total = windows.total_tokens - 1
    windows_in_all = -(-total // length)
    count = -(-min(total, max_tokens or total) // length)
    for first in range(0, count, rows):
        tokens = np.zeros((rows, length + 1), np.int32)
        weights = np.zeros((rows, length), np.float32)
        for row, place in enumerate(range(first, min(first + rows, count))):
            index = place * windows_in_all // count
            window = windows.tokens(index * length, (index + 1) * length + 1)
            tokens[row, : len(window)] = window
            weights[row, : len(window) - 1] = 1
        yield tokens, weights


def segments(tokens_BT: np.ndarray, eos_id: int) -> np.ndarray:
    """A number for each document of a window, [B, T] int32; an end-of-document token belongs to the document that it ends."""
    ends = (tokens_BT == eos_id).astype(np.int32)
    return np.cumsum(ends, axis=1, dtype=np.int32) - ends
