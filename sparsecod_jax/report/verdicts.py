"""Do the runs support what a study claims? Verdicts: paired differences between two arms over seeds, with a t-interval."""

import dataclasses
from typing import Literal

import numpy as np
import scipy.stats

from sparsecod_jax.report.measures import measure
from sparsecod_jax.report.runs import RunData
from sparsecod_jax.study.study import Claim

CONFIDENCE = 0.95
Outcome = Literal["supported", "contradicted", "undecided"]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the runs say of a claim; effect and interval are differences, or factors where a ratio is claimed."""

    claim: Claim
    outcome: Outcome
    pairs: dict[
        int, tuple[float, float]
    ]  # by seed: the arm that should be greater, and the other
    effect: float | None = None
    interval: tuple[float, float] | None = None
    reason: str = ""  # where it is undecided


def judge(claim: Claim, runs: dict[tuple[str, int], RunData]) -> Verdict:
    """Decides a claim from the finished runs, by arm and seed.

    Supported: the whole interval lies on the claimed side and the mean is at least the
    minimum effect of interest. Contradicted: the same on the other side. Undecided: all
    else. For a ratio the logarithms are compared.
    """
    pairs = {}
    for seed in sorted({seed for _, seed in runs}):
        greater, than = (runs.get((arm, seed)) for arm in (claim.greater, claim.than))
        a, b = (measure(run, claim.metric) if run else None for run in (greater, than))
        if a is not None and b is not None and not (claim.ratio and min(a, b) <= 0):
            pairs[seed] = (a, b)
    if not pairs:
        return Verdict(claim, "undecided", pairs, reason="no seed has both numbers")
    smallest = np.log(claim.smallest) if claim.ratio else claim.smallest
    differences = np.array(
        [np.log(a) - np.log(b) if claim.ratio else a - b for a, b in pairs.values()]
    )
    mean = float(differences.mean())
    shown = (lambda x: float(np.exp(x))) if claim.ratio else float
    if len(pairs) == 1:
        return Verdict(
            claim, "undecided", pairs, shown(mean), reason="one seed gives no interval"
        )
    half = float(
        scipy.stats.t.ppf((1 + CONFIDENCE) / 2, len(pairs) - 1)
        * differences.std(ddof=1)
        / np.sqrt(len(pairs))
    )
    low, high = mean - half, mean + half
    outcome: Outcome = (
        "supported"
        if low > 0 and mean >= smallest
        else "contradicted"
        if high < 0 and mean <= -smallest
        else "undecided"
    )
    reason = _why_undecided(low, high, smallest) if outcome == "undecided" else ""
    return Verdict(
        claim, outcome, pairs, shown(mean), (shown(low), shown(high)), reason
    )


def _why_undecided(low: float, high: float, smallest: float) -> str:
    if -smallest < low and high < smallest:
        return "smaller than the minimum effect of interest"
    if low > 0 or high < 0:
        return "there is an effect, but it may be below the minimum effect of interest"
    return "the interval includes both no effect and a large one"
