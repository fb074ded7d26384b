"""How sure is a score? Percentile bootstrap over sequences, which are the units that were drawn independently.

R resamplings, N sequences.
"""

from collections.abc import Callable

import numpy as np

DRAWS = 1000
LEVEL = 0.95


def interval(statistic: Callable[[np.ndarray], np.ndarray], sequences: int, seed: int = 0) -> list[float]:
    """The central LEVEL of a statistic over DRAWS resamplings of the sequences (Efron and Tibshirani 1993, ch. 13): [low, high].

    Args:
      statistic: from the weight of each sequence in each resampling, [R, N], rows summing to 1, to [R].
      sequences: N.
    """
    counts_RN = np.random.default_rng(seed).multinomial(sequences, np.full(sequences, 1 / sequences), size=DRAWS)
    tail = (1 - LEVEL) / 2
    return np.quantile(statistic(counts_RN / sequences), [tail, 1 - tail]).tolist()
