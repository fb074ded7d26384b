"""What does each layer contribute? Figures and headline numbers of the scores of runs."""

from collections.abc import Callable
from typing import Any

import numpy as np

from sparsecod_jax.report.figures import Figure, Heatmap, RunData, Series

DEEP_WORKS = "Higher in late blocks: they still do something."


def figures(runs: list[RunData]) -> list[Figure | Heatmap]:
    """Those of the scores that any run has."""
    scored = [run for run in runs if run.scores]
    profiles = [
        _profile(
            scored,
            ("usefulness", "loss_ratio"),
            "Usefulness",
            "loss with the block replaced / loss",
            f"Each block in turn is replaced by the best affine map of each token; 1: the map does as well. {DEEP_WORKS}",
        ),
        _profile(
            scored,
            ("jacobian", "distance_from_identity"),
            "Distance of the Jacobian from the identity",
            "|J - I| / width",
            f"0: the block passes on what it gets. {DEEP_WORKS}",
            log_y=True,
        ),
        _profile(
            scored,
            ("block_influence",),
            "Block influence",
            "1 - cos(input, output)",
            f"0: the block does not turn the stream. {DEEP_WORKS}",
            log_y=True,
        ),
        _profile(
            scored,
            ("profile", "relative_update/block"),
            "Relative size of updates",
            "|output - input| / |input|",
            f"What a block adds, against what is there. {DEEP_WORKS}",
            log_y=True,
        ),
        _profile(
            scored,
            ("profile", "lens_divergence"),
            "Logit lens",
            "KL(decoded after the block || final), nats",
            "What the head would say at each depth. A curve that falls until the end means that late blocks still change the prediction.",
        ),
        _theory(scored),
        _profile(
            scored,
            ("sparsity", "attention", "heads", "density"),
            "Attention density",
            "1 / (n sum of squared weights)",
            "Mean over heads, at the same probe length for all runs; 1: all visible tokens alike. Lower is sparser.",
        ),
        _profile(
            scored,
            ("sparsity", "weights", "kinds", "ffn/down", "rms"),
            "Weight size, FFN output",
            "root mean square",
            "Smaller matrices write less into the stream; weight decay acts here.",
        ),
        _profile(
            scored,
            ("sparsity", "weights", "kinds", "ffn/down", "near_zero_0.1"),
            "Near-zero weights, FFN output",
            "share below 0.1 standard deviations",
            "Gaussian weights have 0.080, whatever their size: above it the matrix is sparse.",
        ),
    ]
    return [figure for figure in profiles if figure.series] + [heatmap for run in scored for heatmap in _heatmaps(run)]


def _profile(runs: list[RunData], path: tuple[str, ...], title: str, y_label: str, reading: str, *, log_y: bool = False) -> Figure:
    """One value a block; of values a head their mean."""
    curves = []
    for run in runs:
        values = _find(run.scores, path)
        if values is not None:
            values = [float(np.mean(value)) for value in values]
            curves.append(Series(run.name, run.name, list(range(1, len(values) + 1)), values))
    return Figure(title, reading, "block", y_label, curves, log_y=log_y)


def _theory(runs: list[RunData]) -> Figure:
    curves = []
    for run in runs:
        for name, label in (("predicted", "predicted"), ("measured", "measured")):
            values = _find(run.scores, ("theory", name))
            if values is not None:
                curves.append(Series(f"{run.name}, {label}", run.name, list(range(1, len(values) + 1)), values, dashed=name == "predicted"))
    reading = (
        "Dashed: expected from the sizes of weights, attention density and gates, if branches did not align with the stream. "
        "What is above it comes from alignment."
    )
    return Figure("Predicted and measured variance", reading, "block", "variance of the residual stream", curves, log_y=True)


def _heatmaps(run: RunData) -> list[Heatmap]:
    causal = "Row s skipped: relative change of what block l adds. Dark to the right end of a row: later blocks build on block s."
    swapped = "Relative change of the loss when two blocks change places. Pale: the blocks do the same, or nothing."
    ablated = "Relative change of the loss without the expert. Pale rows: a block whose experts don't matter."
    found = []
    for path, title, reading, x_label, y_label in (
        (("causal", "matrix"), "Causal effect", causal, "block l", "skipped block s"),
        (("permutation", "matrix"), "Swapped blocks", swapped, "block", "block"),
        (("sparsity", "experts", "importance"), "Importance of experts", ablated, "expert", "block"),
    ):
        values = _find(run.scores, path)
        if values is not None:
            found.append(Heatmap(f"{title}: {run.name}", reading, x_label, y_label, values))
    return found


def _number(value: float) -> str:
    return f"{value:.4g}"


def _interval(value: list[float]) -> str:
    return f"{value[0]:.4f} to {value[1]:.4f}"


def _last(values: list[float]) -> str:
    return f"{values[-1]:.4g}"


HEADLINES: dict[str, tuple[tuple[str, ...], Callable[[Any], str], str]] = {
    "usefulness": (("usefulness", "score"), _number, "mean log loss ratio of blocks replaced by affine maps"),
    "95 % interval": (("usefulness", "ci95"), _interval, "of the usefulness, over sequences"),
    "share above 1.10": (("usefulness", "share_above", "1.10", "share"), _number, "of blocks; the published threshold"),
    "as published": (
        ("usefulness", "as_published", "share_above", "1.10", "share"),
        _number,
        "the same share with the transposed map of the released code, in sample",
    ),
    "causal": (("causal", "score"), _number, "mean over pairs of blocks"),
    "permutation": (("permutation", "score"), _number, "mean over pairs of blocks"),
    "Jacobian, last block": (("jacobian", "distance_from_identity"), _last, "distance from the identity"),
    "predicted variance, last block": (("theory", "predicted"), _last, "from sizes of weights, attention and gates"),
}


def headlines(run: RunData) -> list[str]:
    """The cells of HEADLINES for a run."""
    found = [(_find(run.scores, path), show) for path, show, _ in HEADLINES.values()]
    return ["–" if value is None else show(value) for value, show in found]


def _find(scores: Any, path: tuple[str, ...]) -> Any:
    """The value at a path, None where a part of it is missing."""
    for name in path:
        scores = scores.get(name) if scores else None
    return scores
