"""How sure is a score? Percentile bootstrap over sequences, which are the units that were drawn independently.

R resamplings, N sequences.
"""

import math
from collections.abc import Callable

import numpy as np
from scipy import stats

DRAWS = 2000
LEVEL = 0.95


def interval(
    statistic: Callable[[np.ndarray], np.ndarray], sequences: int, seed: int = 0
) -> list[float] | None:
    """The central LEVEL of a statistic over DRAWS resamplings of the sequences, [low, high]; None for a single sequence.

    Quantiles are taken further out than LEVEL says, by what Student's t has beyond the normal distribution, as few sequences would
    otherwise give too short an interval (Hesterberg 2015, arXiv 1411.5279, the expanded percentile interval).

    Args:
      statistic: from the weight of each sequence in each resampling, [R, N], rows summing to 1, to [R].
      sequences: N.
    """
    if sequences < 2:
        return None
    counts_RN = np.random.default_rng(seed).multinomial(
        sequences, np.full(sequences, 1 / sequences), size=DRAWS
    )
    distance = math.sqrt(sequences / (sequences - 1)) * stats.t.ppf(
        (1 - LEVEL) / 2, sequences - 1
    )
    tail = stats.norm.cdf(distance)
    return np.quantile(statistic(counts_RN / sequences), [tail, 1 - tail]).tolist()
