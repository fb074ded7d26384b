"""Do the runs support what a study claims?

Verdicts: paired differences between two arms over seeds, with a t-interval.
"""

import dataclasses
import warnings
from typing import Literal

import numpy as np
import scipy.stats

from sparsecod_jax.report.measures import measure
from sparsecod_jax.report.runs import RunData
from sparsecod_jax.study.study import Claim

CONFIDENCE = 0.95
Outcome = Literal["supported", "contradicted", "undecided"]
Pairs = dict[int, tuple[float, float]]  # by seed: the greater arm, the other


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The outcome of a claim, and the numbers that it rests on.

    Attributes:
      pairs: by seed, the number of the arm that should be greater, and of the other.
      effect: the mean difference, or the mean factor where a ratio is claimed.
      interval: the t-interval of the effect.
      reason: why the claim is undecided.
    """

    claim: Claim
    outcome: Outcome
    pairs: Pairs
    effect: float | None = None
    interval: tuple[float, float] | None = None
    reason: str = ""


def judge(claim: Claim, runs: dict[tuple[str, int], RunData]) -> Verdict:
    """Decides a claim from the finished runs.

    Two conditions must hold, so that neither a sure but irrelevant effect nor a large
    but noisy one decides a claim.

    Supported: the whole interval lies on the claimed side and the mean is at least the
    minimum effect of interest. Contradicted: the same on the other side. Undecided: all
    else. For a ratio the logarithms are compared.

    Args:
      runs: the finished runs, by arm and seed.
    """
    pairs = _pairs(claim, runs)
    if not pairs:
        return Verdict(claim, "undecided", pairs, reason="no seed has both numbers")
    greater, than = np.array(list(pairs.values())).T
    smallest = claim.smallest
    if claim.ratio:
        # A factor is a difference of logarithms, in which x 2 and x 1/2 are as far from 0.
        greater, than, smallest = np.log(greater), np.log(than), np.log(smallest)

    differences = greater - than
    mean = float(differences.mean())
    effect = _effect(claim, mean)
    if len(pairs) == 1:
        reason = "one seed gives no interval"
        return Verdict(claim, "undecided", pairs, effect, reason=reason)

    low, high = _interval(differences)
    outcome, reason = _outcome(mean, low, high, smallest)
    interval = _effect(claim, low), _effect(claim, high)
    return Verdict(claim, outcome, pairs, effect, interval, reason)


def _pairs(claim: Claim, runs: dict[tuple[str, int], RunData]) -> Pairs:
    """Both numbers of every seed that has them; a ratio needs positive ones."""
    pairs = {}
    for seed in sorted({seed for _, seed in runs}):
        greater = _number(runs.get((claim.greater, seed)), claim.metric)
        than = _number(runs.get((claim.than, seed)), claim.metric)
        if greater is None or than is None:
            continue
        if claim.ratio and min(greater, than) <= 0:
            continue
        pairs[seed] = (greater, than)
    return pairs


def _number(run: RunData | None, metric: str) -> float | None:
    return None if run is None else measure(run, metric)


def _interval(differences: np.ndarray) -> tuple[float, float]:
    """Student's t-interval of the mean of n > 1 differences.

    It is mean +- t s / sqrt(n), where s is their standard deviation and t the quantile
    of Student's distribution with n - 1 degrees of freedom.
    """
    with warnings.catch_warnings():
        # Seeds may agree exactly, as for a derived number: the interval is then the mean.
        warnings.filterwarnings("ignore", "Precision loss", RuntimeWarning)
        test = scipy.stats.ttest_1samp(differences, 0.0)
    low, high = test.confidence_interval(CONFIDENCE)
    return float(low), float(high)


def _effect(claim: Claim, difference: float) -> float:
    """A difference as the claim states effects: of logarithms as a factor."""
    return float(np.exp(difference)) if claim.ratio else difference


def _outcome(
    mean: float, low: float, high: float, smallest: float
) -> tuple[Outcome, str]:
    """The outcome, and the reason where it is undecided."""
    if low > 0 and mean >= smallest:
        return "supported", ""
    if high < 0 and mean <= -smallest:
        return "contradicted", ""
    if -smallest < low and high < smallest:
        return "undecided", "smaller than the minimum effect of interest"
    if low > 0 or high < 0:
        reason = (
            "there is an effect, but it may be below the minimum effect of interest"
        )
        return "undecided", reason
    return "undecided", "the interval includes both no effect and a large one"
