"""Verdicts: the interval against tables and scipy's paired test, and the outcomes."""

import dataclasses

import numpy as np
import pytest
import scipy.stats

from sparsecod_jax.report.verdicts import judge
from sparsecod_jax.study.study import Claim
from tests.support import study_dirs

# The 97.5 % quantile of Student's t by seeds, for one degree of freedom fewer.
QUANTILES = {2: 12.706205, 3: 4.302653, 5: 2.776445}
HIGHER = Claim("flat has more bits", "final/bits_per_byte", "flat", "deep", 0.1)


def _judge(tmp_path, claim, flat, deep):
    """The verdict on bits per byte, or variances, of two arms, one value per seed."""
    values = {"flat": flat, "deep": deep}

    def numbers(run):
        value = values[run.arm][run.seed]
        return (value, 8.0) if claim.metric.startswith("final") else (2.0, value)

    declared = study_dirs.seeds(len(flat))
    study = study_dirs.loaded(tmp_path / "study", numbers, declared)
    return judge(claim, study.finished)


@pytest.mark.parametrize("seeds", QUANTILES)
def test_the_interval_is_that_of_a_paired_t_test(seeds, tmp_path):
    rng = np.random.default_rng(seeds)
    flat, deep = rng.normal(2.5, 0.1, seeds), rng.normal(2.0, 0.1, seeds)
    verdict = _judge(tmp_path, HIGHER, flat.tolist(), deep.tolist())
    mean = (flat - deep).mean()
    half = QUANTILES[seeds] * (flat - deep).std(ddof=1) / np.sqrt(seeds)
    assert verdict.effect == pytest.approx(mean)
    assert verdict.interval == pytest.approx((mean - half, mean + half), abs=1e-6)
    expected = scipy.stats.ttest_rel(flat, deep).confidence_interval(0.95)
    assert verdict.interval == pytest.approx((expected.low, expected.high))
    assert set(verdict.pairs) == set(range(seeds))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("difference", [0.0, 0.3, 0.7])
def test_seeds_that_agree_exactly_give_an_interval_of_no_width(difference, tmp_path):
    flat = [2.0 + difference] * 3
    verdict = _judge(tmp_path, HIGHER, flat, [2.0] * 3)
    assert verdict.interval == pytest.approx((difference, difference))
    assert verdict.outcome == ("supported" if difference else "undecided")


def test_a_ratio_is_compared_by_logarithms(tmp_path):
    flat, deep = np.array([4.0, 5.0, 6.0]), np.array([13.0, 14.0, 19.0])
    verdict = _judge(tmp_path, study_dirs.DEEPER, flat.tolist(), deep.tolist())
    test = scipy.stats.ttest_rel(np.log(deep), np.log(flat))
    expected = test.confidence_interval(0.95)
    assert verdict.outcome == "supported"
    assert verdict.effect == pytest.approx(np.exp(np.log(deep / flat).mean()))
    assert verdict.interval == pytest.approx(np.exp([expected.low, expected.high]))


UNCLEAR = "the interval includes both no effect and a large one"
# Of flat, deep, outcome and reason.
CASES = {
    "present": ([2.5, 2.6, 2.7], [2.0, 2.1, 2.22], "supported", ""),
    "reversed": ([2.0, 2.1, 2.22], [2.5, 2.6, 2.7], "contradicted", ""),
    "noise": (
        [2.0, 2.5, 2.2],
        [2.4, 2.1, 2.2],
        "undecided",
        UNCLEAR,
    ),
    "large but unsure": (
        [2.9, 2.1, 2.4],
        [2.0, 2.1, 2.2],
        "undecided",
        UNCLEAR,
    ),
    "large, unsure and reversed": (
        [2.0, 2.1, 2.2],
        [2.9, 2.1, 2.4],
        "undecided",
        UNCLEAR,
    ),
    "sure but small": (
        [2.05, 2.15, 2.25],
        [2.0, 2.1, 2.2001],
        "undecided",
        "smaller than the minimum effect of interest",
    ),
    "sure, but of open size": (
        [2.0, 2.1, 2.2],
        [1.94, 2.0, 2.099],
        "undecided",
        "there is an effect, but it may be below the minimum effect of interest",
    ),
    "one seed": ([2.5], [2.0], "undecided", "one seed gives no interval"),
}


@pytest.mark.parametrize(
    ("flat", "deep", "outcome", "reason"), CASES.values(), ids=CASES
)
def test_outcomes(flat, deep, outcome, reason, tmp_path):
    verdict = _judge(tmp_path, HIGHER, flat, deep)
    assert (verdict.outcome, verdict.reason) == (outcome, reason)


def test_a_seed_without_both_numbers_is_left_out(tmp_path):
    def numbers(run):
        return 2.0 + (run.arm == "flat") + 0.01 * run.seed, 8.0

    study = study_dirs.loaded(tmp_path / "study", numbers, deep_s1="diverged")
    verdict = judge(HIGHER, study.finished)
    assert set(verdict.pairs) == {0, 2}


def test_a_claim_about_a_number_that_no_run_has_is_undecided(tmp_path):
    study = study_dirs.loaded(tmp_path / "study")
    claim = dataclasses.replace(HIGHER, metric="last/router/gate_sum/mean")
    verdict = judge(claim, study.finished)
    assert verdict.outcome == "undecided"
    assert verdict.effect is None
    assert verdict.reason == "no seed has both numbers"
