"""Intervals hold the truth as often as they say."""

import numpy as np
import pytest

from sparsecod_jax.analysis.bootstrap import interval


@pytest.mark.parametrize("sequences", [8, 16, 60])
def test_coverage_of_a_ratio_of_means(sequences):
    rng = np.random.default_rng(0)
    covered = 0
    for draw in range(1000):
        intact = rng.gamma(20.0, 0.2, sequences)  # mean 4
        changed = 1.25 * intact + rng.normal(0, 0.6, sequences)
        result = interval(
            lambda weights, c=changed, i=intact: (weights @ c) / (weights @ i),
            sequences,
            seed=draw,
        )
        assert result
        covered += result[0] <= 1.25 <= result[1]
    assert 920 <= covered <= 980


def test_nothing_varies_when_all_sequences_are_alike():
    result = interval(lambda weights: weights @ np.full(7, 3.0), 7)
    assert result == pytest.approx([3, 3])


def test_is_that_of_the_mean_for_many_sequences():
    values = np.random.default_rng(1).normal(5, 2, 4000)
    half = 1.96 * values.std() / np.sqrt(4000)
    assert interval(lambda weights: weights @ values, 4000) == pytest.approx(
        [values.mean() - half, values.mean() + half], abs=0.15 * half
    )


def test_a_single_sequence_has_no_interval():
    assert interval(lambda weights: weights @ np.ones(1), 1) is None
