"""One global sequence of windows, whatever the number of processes or the start.

And an evaluation that counts every prediction once.
"""

import hashlib
import itertools

import jax
import numpy as np
import pytest
from etils import epath
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from sparsecod_jax.data.blocks import Shard
from sparsecod_jax.data.pipeline import (
    batches,
    evaluation_batches,
    example_stream,
    local_rows,
    segments,
    to_devices,
)
from sparsecod_jax.data.store import Manifest, Split, Windows

LENGTH, WINDOWS, BATCH = 4, 22, 8  # an epoch ends within a batch


def windows_of(folder, tokens: int, seq_len: int = LENGTH) -> Windows:
    """Windows over the tokens 0, 1, 2, ...: the first one of a window is its position."""
    ids = np.arange(tokens, dtype="<u2")
    ids.tofile(folder / "train.npy")
    sha256 = hashlib.sha256(ids.tobytes()).hexdigest()
    split = Split(1, tokens, 0, 0.0, (Shard("train.npy", 0, tokens, sha256),))
    manifest = Manifest({}, "bytes", tokens, 0, "uint16", split, split, 0)
    return Windows(epath.Path(folder), manifest, split, seq_len)


@pytest.fixture
def windows(tmp_path):
    return windows_of(tmp_path, WINDOWS * LENGTH + 1)


def take(
    count: int, windows, seed: int, batch: int, first_example: int, rows=None
) -> np.ndarray:
    """The first batches, [count, rows, T + 1]; all rows unless some are named."""
    rows = np.arange(batch) if rows is None else np.array(rows)
    endless = batches(windows, seed, batch, first_example, rows)
    return np.stack(list(itertools.islice(endless, count)))


def epochs(windows: Windows, seed: int, count: int) -> list[list[int]]:
    """The numbers of the windows in each of the first epochs."""
    stream = example_stream(windows, seed)
    firsts = [int(np.asarray(stream[n])[0]) for n in range(count * WINDOWS)]
    return (np.array(firsts) // LENGTH).reshape(count, WINDOWS).tolist()


def test_each_epoch_is_a_permutation_of_its_own(windows):
    orders = epochs(windows, 0, 4)
    assert all(sorted(order) == list(range(WINDOWS)) for order in orders)
    assert len({tuple(order) for order in [*orders, range(WINDOWS)]}) == 5


def test_order_follows_the_seed(windows):
    assert epochs(windows, 3, 2) == epochs(windows, 3, 2)
    orders = []
    for seed in (0, 1, 2, 2**32 - 1):
        orders += [tuple(order) for order in epochs(windows, seed, 3)]
    assert len(set(orders)) == len(orders), "all epochs of all seeds differ"


def test_step_s_is_rows_sB_to_sB_plus_B(windows):
    stream, steps = example_stream(windows, 5), 7
    rows = np.stack([np.asarray(stream[n]) for n in range(steps * BATCH)])
    taken = take(steps, windows, 5, BATCH, 0)
    assert (taken.shape, taken.dtype) == ((steps, BATCH, LENGTH + 1), np.int32)
    np.testing.assert_array_equal(taken.reshape(rows.shape), rows)
    np.testing.assert_array_equal(taken, taken[:, :, :1] + np.arange(LENGTH + 1))


@pytest.mark.parametrize(
    "shares",
    [
        [range(8)],
        [range(4), range(4, 8)],
        [(0, 3), (1, 2, 6), (4, 5, 7)],
        [(7,), range(7)],
    ],
)
def test_the_rows_of_all_processes_are_the_global_batch(windows, shares):
    whole = take(7, windows, 5, BATCH, 2 * BATCH)
    for rows in shares:
        part = take(7, windows, 5, BATCH, 2 * BATCH, rows)
        np.testing.assert_array_equal(part, whole[:, list(rows)])


@pytest.mark.parametrize("spec", [P("x"), P("y"), P(("x", "y")), P(("y", "x")), P()])
def test_rows_reach_the_devices_that_hold_them(spec):
    """Also where devices are in another order than their rows, or hold the same ones."""
    devices = np.array(jax.devices())[[5, 0, 7, 2, 4, 1, 6, 3]]
    mesh = jax.sharding.Mesh(devices.reshape(2, 4), ("x", "y"))
    sharding = NamedSharding(mesh, spec)
    whole = np.arange(8 * 3).reshape(8, 3)
    rows = local_rows(sharding, 8)
    assert rows.tolist() == list(range(8)), "one process holds them all, each once"
    placed = to_devices({"tokens": whole, "none": None}, rows, sharding, 8)
    assert placed["none"] is None
    assert placed["tokens"].sharding == sharding
    for shard in placed["tokens"].addressable_shards:
        np.testing.assert_array_equal(shard.data, whole[shard.index])


def test_beginning_later_is_skipping(windows):
    whole = take(12, windows, 5, BATCH, 0)
    for skipped in (1, 2, 3, 9):  # the first epoch ends within the third batch
        later = take(3, windows, 5, BATCH, skipped * BATCH)
        np.testing.assert_array_equal(later, whole[skipped : skipped + 3])


def test_another_batch_size_reads_the_same_sequence(windows):
    first = take(4, windows, 5, 6, 0).reshape(24, LENGTH + 1)
    then = take(2, windows, 5, 3, 24).reshape(6, LENGTH + 1)
    whole = take(5, windows, 5, 6, 0).reshape(30, LENGTH + 1)
    np.testing.assert_array_equal(np.concatenate([first, then]), whole)


def test_batch_larger_than_an_epoch(windows):
    order = sum(epochs(windows, 5, 3)[1:], epochs(windows, 5, 1)[0])
    (batch,) = take(1, windows, 5, 50, 0)
    assert (batch[:, 0] // LENGTH).tolist() == order[:50]


@pytest.mark.parametrize("tokens", [2, 5, 6, 9, 24, 25, 26, 27])
@pytest.mark.parametrize("rows", [1, 3])
def test_evaluation_counts_every_prediction_once(tmp_path, tokens, rows):
    windows = windows_of(tmp_path, tokens)
    inputs, targets, count = [], [], 0
    for tokens_BT1, weights_BT in evaluation_batches(windows, rows, np.arange(rows), 0):
        assert (tokens_BT1.shape, tokens_BT1.dtype) == ((rows, LENGTH + 1), np.int32)
        assert (weights_BT.shape, weights_BT.dtype) == ((rows, LENGTH), np.float32)
        assert set(np.unique(weights_BT)) <= {0, 1}
        counts_BT = weights_BT == 1
        inputs += tokens_BT1[:, :-1][counts_BT].tolist()
        targets += tokens_BT1[:, 1:][counts_BT].tolist()
        count += 1
    assert inputs == list(range(tokens - 1))
    assert targets == list(range(1, tokens))
    assert count == -(-(tokens - 1) // (rows * LENGTH))


@pytest.mark.parametrize(
    ("max_tokens", "counted"),
    [(1, 4), (4, 4), (5, 8), (12, 12), (25, 26), (26, 26), (1000, 26)],
)
def test_evaluation_takes_max_tokens_in_whole_windows(tmp_path, max_tokens, counted):
    windows = windows_of(tmp_path, 27)
    evaluated = evaluation_batches(windows, 2, np.arange(2), max_tokens)
    assert sum(weights.sum() for _, weights in evaluated) == counted


def test_a_part_of_the_evaluation_is_spread_over_the_split(tmp_path):
    windows = windows_of(tmp_path, 8 * LENGTH + 1)
    (tokens, _), *rest = evaluation_batches(windows, 4, np.arange(4), 4 * LENGTH)
    assert not rest
    np.testing.assert_array_equal(tokens, [windows[index] for index in (0, 2, 4, 6)])


@pytest.mark.parametrize("max_tokens", [0, 18])
def test_processes_evaluate_their_rows_of_the_same_batches(tmp_path, max_tokens):
    windows = windows_of(tmp_path, 27)
    whole = list(evaluation_batches(windows, 4, np.arange(4), max_tokens))
    for rows in ([0, 1], [3], [1, 2]):
        parts = list(evaluation_batches(windows, 4, np.array(rows), max_tokens))
        # Also a process whose rows of the last batch are padding takes part.
        assert len(parts) == len(whole)
        for part, batch in zip(parts, whole, strict=True):
            for values, expected in zip(part, batch, strict=True):
                np.testing.assert_array_equal(values, expected[rows])


def test_segments_number_the_documents_of_each_window():
    tokens = np.array(
        [[5, 0, 6, 6, 0, 0, 7], [0, 1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6, 0]]
    )
    numbers = segments(tokens, eos_id=0)
    assert numbers.dtype == np.int32
    assert numbers.tolist() == [
        [0, 0, 1, 1, 1, 2, 3],
        [0, 1, 1, 1, 1, 1, 1],
        [0, 0, 0, 0, 0, 0, 0],
    ]
