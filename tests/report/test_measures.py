"""Names of numbers."""

import pytest
import study_dirs

from sparsecod_jax.report.measures import measure

FOUND = {
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
}


@pytest.fixture
def study(tmp_path):
    return study_dirs.loaded(tmp_path / "study", flat_s1="running")


@pytest.mark.parametrize(("name", "value"), FOUND.items(), ids=FOUND)
def test_a_number_is_found_by_its_name(name, value, study):
    assert measure(study.runs["flat", 0], name) == pytest.approx(value)


@pytest.mark.parametrize("name", ["final/mfu", "final/nothing", "last/router/gate_square_sum/mean", "scores/experts/mean"])
def test_what_a_run_lacks_is_none(name, study):
    assert measure(study.runs["flat", 0], name) is None


def test_a_run_that_is_under_way_has_only_lines(study):
    run = study.runs["flat", 1]
    assert measure(run, "last/loss") == pytest.approx(5 / 3)
    assert measure(run, "final/loss") is measure(run, "scores/causal/score") is measure(run, "derived/density") is None
