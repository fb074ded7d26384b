"""Layer scores in reports."""

import pytest

from sparsecod_jax.report import depth, overview
from sparsecod_jax.report.document import Figure, Heatmap
from sparsecod_jax.report.page import render
from sparsecod_jax.report.runs import RunData

SCORES = {
    "usefulness": {
        "loss_ratio": [1.5, 1.01],
        "score": 0.2077,
        "ci95": [0.19, 0.22],
        "share_above": {"1.10": {"share": 0.5}},
        "as_published": {
            "loss_ratio": [1.6, 1.2],
            "share_above": {"1.10": {"share": 1.0}},
        },
    },
    "causal": {
        "matrix": [[0.0, 0.4], [0.0, 0.0]],
        "score": 0.4,
        "future": {"matrix": [[0.0, 0.1], [0.0, 0.0]]},
    },
    "permutation": {"matrix": [[0.0, 0.3], [0.3, 0.0]], "score": 0.3},
    "jacobian": {
        "distance_from_identity": [0.02, 0.005],
        "same_position": {"distance_from_identity": [0.01, 0.004]},
    },
    "block_influence": [0.2, 0.1],
    "profile": {
        "relative_update/block": [2.0, 0.5],
        "lens_divergence": [0.7, 0.0],
        "lens_overlap": [0.5, 1.0],
    },
    "sparsity": {
        "attention": {
            "probe_length": 64,
            "heads": {"density": [[0.5, 0.7], [0.2, 0.4]]},
        },
        "activations": {"massive": [3.0, 4.0]},
        "experts": {
            "utilisation": [[0.25, 0.75], [0.5, 0.5]],
            "importance": [[-0.1, 0.3], [0.0, 0.2]],
        },
        "weights": {
            "kinds": {"ffn/down": {"rms": [0.1, 0.11], "near_zero_0.1": [0.08, 0.09]}}
        },
    },
    "theory": {
        "predicted": [1.0, 2.0],
        "measured": [1.1, 4.0],
        "relative_error": [-0.1, -0.5],
    },
}


def _run(name="deep", scores=None):
    model = {
        "n_layers": 2,
        "d_model": 32,
        "n_heads": 2,
        "d_ff": 64,
        "vocab_size": 100,
        "n_experts": 0,
    }
    return RunData(name, "finished", {"model": model}, [], None, scores)


def _page(*runs):
    return render(overview.document("study", list(runs)))


def test_every_score_has_its_figure():
    drawn = {figure.title: figure for figure in depth.figures([_run(scores=SCORES)])}
    assert len(drawn) == len(depth.CURVES) + len(depth.MATRICES)
    usefulness = drawn["Usefulness"]
    assert isinstance(usefulness, Figure)
    assert (usefulness.series[0].x, usefulness.series[0].y) == ([1, 2], [1.5, 1.01])
    density = drawn["Attention density"]
    assert isinstance(density, Figure)
    assert density.series[0].label == "deep, 64 tokens"
    assert density.series[0].y == pytest.approx([0.6, 0.3])  # the mean over heads
    causal = drawn["Causal effect: deep"]
    assert isinstance(causal, Heatmap)
    assert causal.values == [[0.0, 0.4], [0.0, 0.0]]
    experts = drawn["Importance of experts: deep"]
    assert isinstance(experts, Heatmap)
    assert (experts.signed, experts.largest) == (True, 0.3)
    theory = drawn["Predicted and measured variance"]
    assert isinstance(theory, Figure)
    predicted, measured = theory.series
    assert (predicted.label, predicted.dashed) == ("deep, predicted", True)
    assert (measured.label, measured.dashed) == ("deep, measured", False)
    assert all(figure.reading for figure in drawn.values())


def test_only_what_was_scored_is_drawn():
    runs = [
        _run(scores={"permutation": SCORES["permutation"]}),
        _run("other", {"permutation": {"matrix": [[0.0]], "score": None}}),
        _run("none"),
    ]
    titles = [figure.title for figure in depth.figures(runs)]
    assert titles == ["Swapped blocks: deep", "Swapped blocks: other"]
    assert depth.figures([_run("none")]) == []
    assert depth.cells(runs[1]) == ["–"] * len(depth.COLUMNS)


def test_every_score_has_its_columns():
    names = [column.name for column in depth.COLUMNS]
    assert dict(zip(names, depth.cells(_run(scores=SCORES)), strict=True)) == {
        "usefulness": "0.2077",
        "95 % interval": "0.1900 to 0.2200",
        "share above 1.10": "0.5",
        "as published": "1",
        "causal": "0.4",
        "permutation": "0.3",
        "Jacobian, last block": "0.005",
        "predicted variance, last block": "2",
        "measured": "4",
        "error": "-0.5",
    }


def test_colours_compare_between_runs():
    pale = {"permutation": {"matrix": [[0.0, 1e-6], [1e-6, 0.0]], "score": 1e-6}}
    dark = {"permutation": SCORES["permutation"]}
    drawn = depth.figures([_run("pale", pale), _run("dark", dark)])
    heatmaps = [figure for figure in drawn if isinstance(figure, Heatmap)]
    assert [heatmap.largest for heatmap in heatmaps] == [0.3, 0.3]


def test_values_that_are_not_finite_are_left_out():
    broken = {
        "block_influence": [0.1, None],
        "usefulness": {"score": None, "ci95": [None, None]},
        "permutation": {"matrix": [[0.0, None], [None, 0.0]], "score": None},
        "sparsity": {
            "attention": {
                "probe_length": 8,
                "heads": {"density": [[0.5, None], [0.2, 0.4]]},
            }
        },
    }
    drawn = {figure.title: figure for figure in depth.figures([_run(scores=broken)])}
    influence, density = drawn["Block influence"], drawn["Attention density"]
    assert isinstance(influence, Figure)
    assert influence.series[0].y == [0.1, None]
    assert isinstance(density, Figure)
    assert density.series[0].y[0] is None
    assert depth.cells(_run(scores=broken))[:2] == ["–", "–"]
    assert "<html" in _page(_run(scores=broken))


@pytest.mark.parametrize("name", ["deep", "<script>alert(1)</script>"])
def test_the_page_has_a_section_of_scores(name):
    page = _page(_run(name, SCORES), _run("unscored"))
    assert "What each layer contributes" in page
    assert "<td>0.1900 to 0.2200</td>" in page
    assert page.count("<section>") == page.count('class="reading"') - 1
    assert "<script>alert(1)</script>" not in page
    assert "What each layer contributes" not in _page(_run("unscored"))
