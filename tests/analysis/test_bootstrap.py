"""Intervals hold the truth as often as they say."""

import numpy as np

from sparsecod_jax.analysis.bootstrap import interval


def test_coverage_of_a_ratio_of_means():
    rng = np.random.default_rng(0)
    covered = 0
    for draw in range(1000):
        intact = rng.gamma(20.0, 0.2, 60)  # mean 4
        changed = 1.25 * intact + rng.normal(0, 0.6, 60)
        low, high = interval(lambda weights, c=changed, i=intact: (weights @ c) / (weights @ i), 60, seed=draw)
        covered += low <= 1.25 <= high
    assert 920 <= covered <= 980


def test_nothing_varies_when_all_sequences_are_alike():
    np.testing.assert_allclose(interval(lambda weights: weights @ np.full(7, 3.0), 7), 3)


def test_is_that_of_the_mean_for_many_sequences():
    values = np.random.default_rng(1).normal(5, 2, 4000)
    low, high = interval(lambda weights: weights @ values, 4000)
    half = 1.96 * values.std() / np.sqrt(4000)
    np.testing.assert_allclose([low, high], [values.mean() - half, values.mean() + half], atol=0.15 * half)
