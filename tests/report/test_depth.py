"""Figures of the scores."""

import pytest

from sparsecod_jax.report import depth
from sparsecod_jax.report.figures import Figure, Heatmap, RunData
from sparsecod_jax.report.page import render

SCORES = {
    "usefulness": {
        "loss_ratio": [1.5, 1.01],
        "score": 0.2077,
        "ci95": [0.19, 0.22],
        "share_above": {"1.10": {"share": 0.5}},
        "as_published": {"share_above": {"1.10": {"share": 1.0}}},
    },
    "causal": {"matrix": [[0.0, 0.4], [0.0, 0.0]], "score": 0.4},
    "permutation": {"matrix": [[0.0, 0.3], [0.3, 0.0]], "score": 0.3},
    "jacobian": {"distance_from_identity": [0.02, 0.005]},
    "block_influence": [0.2, 0.1],
    "profile": {"relative_update/block": [2.0, 0.5], "lens_divergence": [0.7, 0.0]},
    "sparsity": {
        "attention": {"heads": {"density": [[0.5, 0.7], [0.2, 0.4]]}},
        "weights": {"kinds": {"ffn/down": {"rms": [0.1, 0.11], "near_zero_0.1": [0.08, 0.09]}}},
    },
    "theory": {"predicted": [1.0, 2.0], "measured": [1.1, 3.0]},
}


def _run(name="deep", scores=None):
    model = {"n_layers": 2, "d_model": 32, "n_heads": 2, "d_ff": 64, "vocab_size": 100, "n_experts": 0}
    return RunData(name, "finished", {"model": model}, [], None, scores)


def test_every_score_has_its_figure():
    drawn = {figure.title: figure for figure in depth.figures([_run(scores=SCORES)])}
    assert len(drawn) == 9 + 2
    usefulness = drawn["Usefulness"]
    assert isinstance(usefulness, Figure)
    assert (usefulness.series[0].x, usefulness.series[0].y) == ([1, 2], [1.5, 1.01])
    density = drawn["Attention density"]
    assert isinstance(density, Figure)
    assert density.series[0].y == pytest.approx([0.6, 0.3])  # the mean over heads
    causal = drawn["Causal effect: deep"]
    assert isinstance(causal, Heatmap)
    assert causal.values == [[0.0, 0.4], [0.0, 0.0]]
    theory = drawn["Predicted and measured variance"]
    assert isinstance(theory, Figure)
    assert [(series.label, series.dashed) for series in theory.series] == [("deep, predicted", True), ("deep, measured", False)]
    assert all(figure.reading for figure in drawn.values())


def test_only_what_was_scored_is_drawn():
    runs = [
        _run(scores={"permutation": SCORES["permutation"]}),
        _run("other", {"permutation": {"matrix": [[0.0]], "score": None}}),
        _run("none"),
    ]
    assert [figure.title for figure in depth.figures(runs)] == ["Swapped blocks: deep", "Swapped blocks: other"]
    assert depth.figures([_run("none")]) == []
    assert depth.headlines(runs[1]) == ["–"] * len(depth.HEADLINES)


def test_headlines():
    found = dict(zip(depth.HEADLINES, depth.headlines(_run(scores=SCORES)), strict=True))
    assert found == {
        "usefulness": "0.2077",
        "95 % interval": "0.1900 to 0.2200",
        "share above 1.10": "0.5",
        "as published": "1",
        "causal": "0.4",
        "permutation": "0.3",
        "Jacobian, last block": "0.005",
        "predicted variance, last block": "2",
    }


@pytest.mark.parametrize("name", ["deep", "<script>alert(1)</script>"])
def test_the_page_has_a_section_of_scores(name):
    page = render("study", [_run(name, SCORES), _run("unscored")])
    assert "What each layer contributes" in page
    assert "<td>0.1900 to 0.2200</td>" in page
    assert page.count("<section>") == page.count('class="reading"') - 1
    assert "<script>alert(1)</script>" not in page
    assert "What each layer contributes" not in render("study", [_run("unscored")])
