"""Verdicts against scipy's own interval, and their words."""

import dataclasses

import numpy as np
import pytest
import scipy.stats

from sparsecod_jax.report.verdicts import judge
from sparsecod_jax.study.study import Claim
from tests.support import study_dirs

HIGHER = Claim("flat has more bits", "final/bits_per_byte", "flat", "deep", 0.1)


def _judge(tmp_path, claim, flat, deep):
    """The verdict on bits per byte, or variances, of two arms, one value a seed."""
    values = {"flat": flat, "deep": deep}

    def numbers(run):
        value = values[run.arm][run.seed]
        return (value, 8.0) if claim.metric.startswith("final") else (2.0, value)

    return judge(
        claim,
        study_dirs.loaded(
            tmp_path / "study", numbers, study_dirs.seeds(len(flat))
        ).finished,
    )


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_interval_is_that_of_a_paired_t_test(seeds, tmp_path):
    rng = np.random.default_rng(seeds)
    flat, deep = rng.normal(2.5, 0.1, seeds), rng.normal(2.0, 0.1, seeds)
    verdict = _judge(tmp_path, HIGHER, flat.tolist(), deep.tolist())
    expected = scipy.stats.ttest_rel(flat, deep)
    assert verdict.effect == pytest.approx((flat - deep).mean())
    assert verdict.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert set(verdict.pairs) == set(range(seeds))


def test_a_ratio_is_compared_by_logarithms(tmp_path):
    flat, deep = np.array([4.0, 5.0, 6.0]), np.array([13.0, 14.0, 19.0])
    verdict = _judge(tmp_path, study_dirs.DEEPER, flat.tolist(), deep.tolist())
    expected = scipy.stats.ttest_rel(np.log(deep), np.log(flat)).confidence_interval(
        0.95
    )
    assert verdict.outcome == "supported"
    assert verdict.effect == pytest.approx(np.exp(np.log(deep / flat).mean()))
    assert verdict.interval == pytest.approx(
        (np.exp(expected.low), np.exp(expected.high))
    )


CASES = {  # flat, deep -> outcome, why
    "present": ([2.5, 2.6, 2.7], [2.0, 2.1, 2.22], "supported", ""),
    "reversed": ([2.0, 2.1, 2.22], [2.5, 2.6, 2.7], "contradicted", ""),
    "noise": (
        [2.0, 2.5, 2.2],
        [2.4, 2.1, 2.2],
        "undecided",
        "the interval includes both no effect and a large one",
    ),
    "large but unsure": (
        [2.9, 2.1, 2.4],
        [2.0, 2.1, 2.2],
        "undecided",
        "the interval includes both no effect and a large one",
    ),
    "large, unsure and reversed": (
        [2.0, 2.1, 2.2],
        [2.9, 2.1, 2.4],
        "undecided",
        "the interval includes both no effect and a large one",
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
    study = study_dirs.loaded(
        tmp_path / "study",
        lambda run: (2.0 + (run.arm == "flat") + 0.01 * run.seed, 8.0),
        deep_s1="diverged",
    )
    verdict = judge(HIGHER, study.finished)
    assert set(verdict.pairs) == {0, 2}
    nowhere = judge(
        dataclasses.replace(HIGHER, metric="last/router/gate_sum/mean"), study.finished
    )
    assert (nowhere.outcome, nowhere.effect, nowhere.reason) == (
        "undecided",
        None,
        "no seed has both numbers",
    )
