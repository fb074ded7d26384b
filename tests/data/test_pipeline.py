"""One global stream, whatever the number of hosts or the place where it is begun; and an evaluation that counts all once."""

import hashlib
import itertools

import numpy as np
import pytest
from etils import epath

from sparsecod_jax.data.pipeline import batches, evaluation_batches, example_stream, segments
from sparsecod_jax.data.store import Manifest, Shard, Split, Windows

LENGTH, WINDOWS, BATCH = 4, 22, 8  # an epoch ends within a batch


def windows_of(folder, tokens: int, seq_len: int = LENGTH) -> Windows:
    """Windows over the tokens 0, 1, 2, ..., so that a window's first token tells its place."""
    ids = np.arange(tokens, dtype="<u2")
    ids.tofile(folder / "train.npy")
    split = Split(1, tokens, 0, 0.0, (Shard("train.npy", 0, tokens, hashlib.sha256(ids.tobytes()).hexdigest()),))
    return Windows(epath.Path(folder), Manifest({}, "bytes", tokens, 0, "uint16", split, split, 0), split, seq_len)


@pytest.fixture
def windows(tmp_path):
    return windows_of(tmp_path, WINDOWS * LENGTH + 1)


def take(count: int, *args, **options) -> np.ndarray:
    """The first batches, [count, rows, T + 1]."""
    return np.stack(list(itertools.islice(batches(*args, **options), count)))


def epochs(windows: Windows, seed: int, count: int) -> list[list[int]]:
    """The windows' numbers in each of the first epochs."""
    stream = example_stream(windows, seed)
    return [[int(np.asarray(stream[epoch * WINDOWS + n])[0]) // LENGTH for n in range(WINDOWS)] for epoch in range(count)]


def test_each_epoch_is_a_permutation_of_its_own(windows):
    orders = epochs(windows, 0, 4)
    assert all(sorted(order) == list(range(WINDOWS)) for order in orders)
    assert len({tuple(order) for order in [*orders, range(WINDOWS)]}) == 5


def test_order_follows_the_seed(windows):
    assert epochs(windows, 3, 2) == epochs(windows, 3, 2)
    orders = [tuple(order) for seed in (0, 1, 2, 2**32 - 1) for order in epochs(windows, seed, 3)]
    assert len(set(orders)) == len(orders), "no epoch of one seed is an epoch of another"


def test_step_s_is_rows_sB_to_sB_plus_B(windows):
    stream, steps = example_stream(windows, 5), 7
    rows = np.stack([np.asarray(stream[n]) for n in range(steps * BATCH)])
    taken = take(steps, windows, 5, BATCH, 0)
    assert (taken.shape, taken.dtype) == ((steps, BATCH, LENGTH + 1), np.int32)
    np.testing.assert_array_equal(taken.reshape(rows.shape), rows)
    np.testing.assert_array_equal(taken, taken[:, :, :1] + np.arange(LENGTH + 1))


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_hosts_side_by_side_are_the_global_batch(windows, hosts):
    whole = take(7, windows, 5, BATCH, 2 * BATCH)
    slices = [take(7, windows, 5, BATCH, 2 * BATCH, host=host, hosts=hosts) for host in range(hosts)]
    assert slices[0].shape == (7, BATCH // hosts, LENGTH + 1)
    np.testing.assert_array_equal(np.concatenate(slices, axis=1), whole)


def test_beginning_later_is_skipping(windows):
    whole = take(12, windows, 5, BATCH, 0)
    for skipped in (1, 2, 3, 9):  # the first epoch ends within the third batch
        np.testing.assert_array_equal(take(3, windows, 5, BATCH, skipped * BATCH), whole[skipped : skipped + 3])


def test_another_batch_size_reads_the_same_stream(windows):
    first = take(4, windows, 5, 6, 0).reshape(24, LENGTH + 1)
    then = take(2, windows, 5, 3, 24).reshape(6, LENGTH + 1)
    np.testing.assert_array_equal(np.concatenate([first, then]), take(5, windows, 5, 6, 0).reshape(30, LENGTH + 1))


def test_batch_larger_than_an_epoch(windows):
    order = sum(epochs(windows, 5, 3)[1:], epochs(windows, 5, 1)[0])
    (batch,) = take(1, windows, 5, 50, 0)
    assert (batch[:, 0] // LENGTH).tolist() == order[:50]


@pytest.mark.parametrize("tokens", [2, 5, 6, 9, 24, 25, 26, 27])
@pytest.mark.parametrize("rows", [1, 3])
def test_evaluation_counts_every_prediction_once(tmp_path, tokens, rows):
    inputs, targets, batches_seen = [], [], 0
    for tokens_BT1, weights_BT in evaluation_batches(windows_of(tmp_path, tokens), rows, 0):
        assert (tokens_BT1.shape, tokens_BT1.dtype) == ((rows, LENGTH + 1), np.int32)
        assert (weights_BT.shape, weights_BT.dtype) == ((rows, LENGTH), np.float32)
        assert set(np.unique(weights_BT)) <= {0, 1}
        inputs += tokens_BT1[:, :-1][weights_BT == 1].tolist()
        targets += tokens_BT1[:, 1:][weights_BT == 1].tolist()
        batches_seen += 1
    assert inputs == list(range(tokens - 1))
    assert targets == list(range(1, tokens))
    assert batches_seen == -(-(tokens - 1) // (rows * LENGTH))


@pytest.mark.parametrize(("max_tokens", "counted"), [(1, 4), (4, 4), (5, 8), (12, 12), (25, 26), (26, 26), (1000, 26)])
def test_evaluation_takes_max_tokens_in_whole_windows(tmp_path, max_tokens, counted):
    weights = [weights.sum() for _, weights in evaluation_batches(windows_of(tmp_path, 27), 2, max_tokens)]
    assert sum(weights) == counted


def test_a_part_of_the_evaluation_is_spread_over_the_split(tmp_path):
    windows = windows_of(tmp_path, 8 * LENGTH + 1)
    (tokens, _), *rest = evaluation_batches(windows, 4, 4 * LENGTH)
    assert not rest
    np.testing.assert_array_equal(tokens, [windows[index] for index in (0, 2, 4, 6)])


def test_segments_number_the_documents_of_each_window():
    tokens = np.array([[5, 0, 6, 6, 0, 0, 7], [0, 1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6, 0]])
    numbers = segments(tokens, eos_id=0)
    assert numbers.dtype == np.int32
    assert numbers.tolist() == [[0, 0, 1, 1, 1, 2, 3], [0, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0]]
