"""Metrics of a run by name."""

import numpy as np
import pytest

from sparsecod_jax.report.measures import measure
from tests.support import study_dirs

NUMBERS = {
    "final/bits_per_byte": 2.0,
    "last/variance/residual/-1": 8.0,
    "first/variance/ffn/0": 0.5,
    "last/variance/ffn/mean": 4.25,
    "last/step": 3.0,
    "scores/usefulness/share_above/1.10/share": 0.5,
    "scores/sparsity/attention/heads/density/mean": 0.5,
    "scores/sparsity/weights/kinds/ffn/down/near_zero_0.1/mean": 0.1,
    "derived/decay": 0.1 * (1e-3 + 2e-3 + 3e-3),
    "derived/density": 0.5 * 0.9,
    "derived/growth": 8.0 / 0.5,
    "derived/later_usefulness": 0.0,
}


@pytest.fixture
def study(tmp_path):
    return study_dirs.loaded(tmp_path / "study", flat_s1="running")


@pytest.mark.parametrize(("name", "value"), NUMBERS.items(), ids=NUMBERS)
def test_a_number_is_found_by_its_name(name, value, study):
    assert measure(study.runs["flat", 0], name) == pytest.approx(value)


@pytest.mark.parametrize(
    "name",
    [
        "final/mfu",
        "final/nothing",
        "last/router/gate_square_sum/mean",
        "scores/experts/mean",
    ],
)
def test_a_number_that_a_run_lacks_is_none(name, study):
    assert measure(study.runs["flat", 0], name) is None


def test_a_running_run_has_only_its_lines(study):
    run = study.runs["flat", 1]
    assert measure(run, "last/loss") == pytest.approx(5 / 3)
    for name in ("final/loss", "scores/causal/score", "derived/density"):
        assert measure(run, name) is None


@pytest.mark.parametrize("variance", [[None, 2.0], [2.0, None], [0.0, 2.0]])
def test_growth_needs_both_variances_and_a_divisor(variance, study):
    run = study.runs["flat", 0]
    run.scores["variance"]["residual"] = variance
    assert measure(run, "derived/growth") is None


def test_later_usefulness_leaves_the_first_block_out(study):
    run = study.runs["flat", 0]
    run.scores["usefulness"]["loss_ratio"] = [7.0, np.e, 1.0]
    assert measure(run, "derived/later_usefulness") == pytest.approx(0.5)
    run.scores["usefulness"]["loss_ratio"] = [7.0, None, 1.0]
    assert measure(run, "derived/later_usefulness") is None
