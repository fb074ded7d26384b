"""How sure is a score?

Confidence intervals: a percentile bootstrap over sequences, which are the units that were
drawn independently.

R resamplings, N sequences.
"""

import math
from collections.abc import Callable

import numpy as np
from scipy import stats

DRAWS = 2000
LEVEL = 0.95

Statistic = Callable[[np.ndarray], np.ndarray]  # from weights [R, N] to values [R]


def interval(statistic: Statistic, sequences: int, seed: int = 0) -> list[float] | None:
    """The central LEVEL of a statistic over DRAWS resamplings of the sequences.

    Source: the expanded percentile interval of Hesterberg 2015, arXiv 1411.5279. Quantiles
    are taken further out than LEVEL has them, as few sequences would otherwise give too
    short an interval.

    Args:
      statistic: of the weight of each sequence in each resampling, rows summing to 1.
      sequences: N.

    Returns:
      [low, high] in the unit of the statistic; None for a single sequence.
    """
    if sequences < 2:
        return None
    # How often each sequence is drawn, out of N draws with replacement.
    rng = np.random.default_rng(seed)
    even_N = np.full(sequences, 1 / sequences)
    counts_RN = rng.multinomial(sequences, even_N, size=DRAWS)
    values_R = statistic(counts_RN / sequences)
    # Student's t reaches further out than the normal distribution, and the variance of a
    # resampling is too small by the factor (N - 1) / N.
    quantile = stats.t.ppf((1 - LEVEL) / 2, sequences - 1)
    distance = math.sqrt(sequences / (sequences - 1)) * quantile
    tail = stats.norm.cdf(distance)
    return np.quantile(values_R, [tail, 1 - tail]).tolist()
