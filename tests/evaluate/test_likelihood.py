"""Losses of chosen predictions against numpy, whatever rows are computed together."""

from typing import Any

import jax
import numpy as np
import pytest

from sparsecod_jax.evaluate import likelihood
from sparsecod_jax.evaluate.likelihood import LENGTHS, Row, pad, scores
from tests.support import loaded_models, numpy_model, tiny_configs


@pytest.fixture(scope="module")
def params():
    return loaded_models.sharpened(tiny_configs.MODEL)


def _rows(count: int, longest: int, seed: int = 0) -> list[Row]:
    """Rows of all lengths with predictions at one to all of their positions.

    At the last position there are several ids.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for length in rng.integers(1, longest + 1, count):
        tokens = tuple(rng.integers(0, tiny_configs.MODEL.vocab_size, length).tolist())
        positions = range(int(rng.integers(0, length)), length)
        predictions = [
            (position, int(rng.integers(0, tiny_configs.MODEL.vocab_size)))
            for position in positions
        ]
        predictions += [(int(length) - 1, other) for other in (1, 2, 3)]
        rows.append(Row(tokens, tuple(dict.fromkeys(predictions))))
    return rows


def _by_hand(params, row: Row) -> tuple[np.ndarray, np.ndarray]:
    logits, _ = numpy_model.forward(params, np.array([row.tokens]), tiny_configs.MODEL)
    log_softmax = logits[0] - np.log(np.exp(logits[0]).sum(-1, keepdims=True))
    losses = np.array(
        [-log_softmax[position, target] for position, target in row.predictions]
    )
    return losses, np.array(
        [logits[0, position].argmax() == target for position, target in row.predictions]
    )


def _scores(rows: list[Row], params, **options):
    model = loaded_models.load(params, **options)
    with jax.set_mesh(model.mesh), jax.default_matmul_precision("highest"):
        result = [pair for part in scores(model, rows) for pair in part]
    assert sorted(number for number, _ in result) == list(range(len(rows)))
    return [score for _, score in sorted(result, key=lambda pair: pair[0])]


def _likeliest(params, rows: list[Row]) -> list[Row]:
    """The rows with the likeliest id at every other position: there are hits and misses."""
    changed = []
    for row in rows:
        logits, _ = numpy_model.forward(
            params, np.array([row.tokens]), tiny_configs.MODEL
        )
        best = logits[0].argmax(-1)
        changed.append(
            row._replace(
                predictions=tuple(
                    (p, int(best[p]) if n % 2 else t)
                    for n, (p, t) in enumerate(row.predictions)
                )
            )
        )
    return changed


def test_equals_numpy(params):
    rows = _likeliest(params, _rows(12, 40))
    hits = 0
    for row, score in zip(rows, _scores(rows, params), strict=True):
        losses, expected = _by_hand(params, row)
        np.testing.assert_allclose(score.losses, losses, rtol=1e-5, atol=1e-5)
        assert score.hits.tolist() == expected.tolist()
        hits += expected.sum()
    assert hits > 20


@pytest.mark.parametrize("sizes", [(1, 8, 1, 1), (2, 2, 1, 2), (1, 1, 1, 4)])
def test_does_not_depend_on_the_mesh(params, sizes):
    rows = _likeliest(params, _rows(11, 30, seed=1))
    for one, many in zip(
        _scores(rows, params), _scores(rows, params, sizes=sizes), strict=True
    ):
        np.testing.assert_allclose(one.losses, many.losses, rtol=1e-5, atol=1e-5)
        assert one.hits.tolist() == many.hits.tolist()


def test_does_not_depend_on_order_or_batch(params, monkeypatch):
    rows = _rows(10, 30, seed=2)
    together = _scores(rows, params)
    backwards = _scores(rows[::-1], params)[::-1]
    monkeypatch.setattr(likelihood, "TOKENS", 64)
    few = _scores(rows, params)
    (alone,) = _scores(rows[:1], params)
    for first, *others in zip(
        together, backwards, few, [alone, *together[1:]], strict=True
    ):
        for other in others:
            np.testing.assert_allclose(first.losses, other.losses, rtol=1e-5, atol=1e-5)


def test_ids_of_equal_likelihood(params):
    """The lowest is the likeliest, as for argmax, also where they are on different devices."""
    head = params["head"].copy()
    head[:, 200] = head[:, 7] = 10 * head[:, 50]
    tied = params | {"head": head}
    tokens = tuple(range(20, 40))
    rows = [
        Row(
            tokens,
            tuple((position, target) for position in range(20) for target in (7, 200)),
        )
    ]
    _, expected = _by_hand(tied, rows[0])
    assert expected[::2].any()
    assert not expected[1::2].any()
    for sizes in ((1, 1, 1, 1), (1, 1, 1, 4)):
        (score,) = _scores(rows, tied, sizes=sizes)
        assert score.hits.tolist() == expected.tolist()


def test_few_programs(params):
    """However many lengths there are."""
    program: Any = likelihood._losses_and_hits
    program.clear_cache()
    _scores(_rows(150, 120, seed=3), params)
    assert 2 <= program._cache_size() <= 2 * LENGTHS


def test_padding_is_the_least_for_so_many_lengths(monkeypatch):
    """Against every choice of three lengths."""
    monkeypatch.setattr(likelihood, "LENGTHS", 3)
    sizes = np.random.default_rng(0).integers(1, 100, 30)
    padded = pad(sizes)
    assert (padded >= sizes).all()
    values = np.unique(-(-sizes // 8) * 8)
    least = min(
        sum(
            min(length for length in (first, second, values[-1]) if length >= size)
            for size in sizes
        )
        for first in values
        for second in values
    )
    assert padded.sum() == least
    assert len(np.unique(padded)) == 3


def test_padding_of_few_sizes():
    assert pad(np.array([5, 9, 9, 8])).tolist() == [8, 16, 16, 8]
    assert pad(np.array([], int)).tolist() == []


def test_no_rows(params):
    assert _scores([], params) == []


def test_mixture():
    """A mixture of experts is one model of the same interface."""
    rows, params = _rows(4, 20, seed=4), loaded_models.sharpened(tiny_configs.MIXTURE)
    for row, score in zip(
        rows, _scores(rows, params, model=tiny_configs.MIXTURE), strict=True
    ):
        logits, _ = numpy_model.forward(
            params, np.array([row.tokens]), tiny_configs.MIXTURE
        )
        log_softmax = logits[0] - np.log(np.exp(logits[0]).sum(-1, keepdims=True))
        np.testing.assert_allclose(
            score.losses,
            [-log_softmax[pair] for pair in row.predictions],
            rtol=1e-4,
            atol=1e-4,
        )
