"""What does each layer contribute? Figures and headline numbers of the scores of runs."""

from collections.abc import Callable
from typing import Any

import numpy as np

from sparsecod_jax.report.document import Figure, Heatmap, Series, short
from sparsecod_jax.report.measures import find
from sparsecod_jax.report.runs import RunData

DEEP_WORKS = "Higher in late blocks: they still do something."

# What is drawn against depth: where it is in scores.json, title, y axis, how to read it, whether the axis is logarithmic.
PROFILES: list[tuple[tuple[str, ...], str, str, str, bool]] = [
    (
        ("usefulness", "loss_ratio"),
        "Usefulness",
        "loss with the block replaced / loss",
        f"Each block in turn is replaced by the best affine map of each token; 1: the map does as well. {DEEP_WORKS}",
        False,
    ),
    (
        ("usefulness", "as_published", "loss_ratio"),
        "Usefulness, as published",
        "loss with the block replaced / loss",
        "With the transposed map that the paper's code installs, in sample: above the figure before, by what is wrong with the map.",
        False,
    ),
    (
        ("jacobian", "distance_from_identity"),
        "Distance of the Jacobian from the identity",
        "|J - I| / width",
        f"0: the block passes on what it gets. {DEEP_WORKS}",
        True,
    ),
    (
        ("jacobian", "same_position", "distance_from_identity"),
        "Distance of the Jacobian from the identity, within a position",
        "|J - I| / width",
        f"Without what attention brings from other positions. {DEEP_WORKS}",
        True,
    ),
    (("block_influence",), "Block influence", "1 - cos(input, output)", f"0: the block does not turn the stream. {DEEP_WORKS}", True),
    (
        ("profile", "relative_update/block"),
        "Relative size of updates",
        "|output - input| / |input|",
        f"What a block adds, against what is there. {DEEP_WORKS}",
        True,
    ),
    (
        ("profile", "lens_divergence"),
        "Logit lens",
        "KL(decoded after the block || final), nats",
        "What the head would say at each depth. A curve that falls until the end means that late blocks still change the prediction.",
        False,
    ),
    (
        ("profile", "lens_overlap"),
        "Logit lens, overlap",
        "share of the final top 5 predictions",
        "A curve that rises until the end means that late blocks still change the prediction.",
        False,
    ),
    (
        ("sparsity", "attention", "heads", "density"),
        "Attention density",
        "1 / (n sum of squared weights)",
        "Mean over heads; 1: all visible tokens alike. Lower is sparser. Compare runs of one probe length only: it is in the legend.",
        False,
    ),
    (
        ("sparsity", "weights", "kinds", "ffn/down", "rms"),
        "Weight size, FFN output",
        "root mean square",
        "Smaller matrices write less into the stream; weight decay acts here.",
        False,
    ),
    (
        ("sparsity", "weights", "kinds", "ffn/down", "near_zero_0.1"),
        "Near-zero weights, FFN output",
        "share below 0.1 standard deviations",
        "Gaussian weights have 0.080, whatever their size: above it the matrix is sparse.",
        False,
    ),
    (
        ("sparsity", "activations", "massive"),
        "Massive activations",
        "largest / median magnitude",
        "Mean over tokens. Large: a few channels dwarf the rest of the stream.",
        True,
    ),
]

# What is drawn as colours: where it is, title, how to read it, axes, whether it has two signs.
MATRICES: list[tuple[tuple[str, ...], str, str, str, str, bool]] = [
    (
        ("causal", "matrix"),
        "Causal effect",
        "Row s skipped: relative change of what block l adds. Dark to the right end of a row: later blocks build on block s.",
        "block l",
        "skipped block s",
        False,
    ),
    (
        ("causal", "future", "matrix"),
        "Causal effect on future tokens",
        "Block s skipped for past tokens, measured on later ones: what reaches them through attention. Dark: later blocks build on it.",
        "block l",
        "skipped block s",
        False,
    ),
    (
        ("permutation", "matrix"),
        "Swapped blocks",
        "Relative change of the loss when two blocks change places. Pale: the blocks do the same, or nothing.",
        "block",
        "block",
        False,
    ),
    (
        ("sparsity", "experts", "utilisation"),
        "Use of experts",
        "Share of a block's choices that each expert gets. An even row: the block uses all of them alike.",
        "expert",
        "block",
        False,
    ),
    (
        ("sparsity", "experts", "importance"),
        "Importance of experts",
        "Relative change of the loss without the expert; blue: it gets worse. Pale rows: a block whose experts don't matter.",
        "expert",
        "block",
        True,
    ),
]


def figures(runs: list[RunData]) -> list[Figure | Heatmap]:
    """Those of the scores that any run has."""
    scored = [run for run in runs if run.scores]
    profiles = [*(_profile(scored, *profile) for profile in PROFILES), _theory(scored)]
    return [figure for figure in profiles if figure.series] + [heatmap for matrix in MATRICES for heatmap in _heatmaps(scored, *matrix)]


def _profile(runs: list[RunData], path: tuple[str, ...], title: str, y_label: str, reading: str, log_y: bool) -> Figure:
    """One value a block; of values a head their mean."""
    curves = []
    for run in runs:
        values = find(run.scores, path)
        probe = f", {find(run.scores, ('sparsity', 'attention', 'probe_length'))} tokens" if "attention" in path else ""
        if values is not None:
            heads = [value if isinstance(value, list) else [value] for value in values]
            means = [None if None in each else float(np.mean(each)) for each in heads]
            curves.append(_series(run, f"{run.name}{probe}", means))
    return Figure(title, reading, "block", y_label, curves, log_y=log_y)


def _theory(runs: list[RunData]) -> Figure:
    curves = []
    for run in runs:
        for name in ("predicted", "measured"):
            values = find(run.scores, ("theory", name))
            if values is not None:
                curves.append(_series(run, f"{run.name}, {name}", values, dashed=name == "predicted"))
    reading = (
        "Dashed: expected from the sizes of weights, attention and gates, if branches did not align with the stream. "
        "What is above it comes from alignment, and from what else sizes don't tell."
    )
    return Figure("Predicted and measured variance", reading, "block", "variance of the residual stream", curves, log_y=True)


def _series(run: RunData, label: str, values: list[float | None], *, dashed: bool = False) -> Series:
    return Series(label, run.name, list(range(1, len(values) + 1)), values, dashed)


def _heatmaps(
    runs: list[RunData], path: tuple[str, ...], title: str, reading: str, x_label: str, y_label: str, signed: bool
) -> list[Heatmap]:
    matrices = {run.name: matrix for run in runs if (matrix := find(run.scores, path)) is not None}
    largest = max((abs(value) for matrix in matrices.values() for row in matrix for value in row if value is not None), default=0.0)
    return [Heatmap(f"{title}: {name}", reading, x_label, y_label, matrix, largest, signed) for name, matrix in matrices.items()]


def _interval(value: list[float]) -> str:
    return f"{value[0]:.4f} to {value[1]:.4f}"


def _last(values: list[float]) -> str:
    return short(values[-1])


HEADLINES: dict[str, tuple[tuple[str, ...], Callable[[Any], str], str]] = {
    "usefulness": (("usefulness", "score"), short, "mean log loss ratio of blocks replaced by affine maps"),
    "95 % interval": (("usefulness", "ci95"), _interval, "of the usefulness, over sequences"),
    "share above 1.10": (("usefulness", "share_above", "1.10", "share"), short, "of blocks; the published threshold"),
    "as published": (
        ("usefulness", "as_published", "share_above", "1.10", "share"),
        short,
        "the same share with the transposed map of the released code, in sample",
    ),
    "causal": (("causal", "score"), short, "mean over pairs of blocks"),
    "permutation": (("permutation", "score"), short, "mean over pairs of blocks"),
    "Jacobian, last block": (("jacobian", "distance_from_identity"), _last, "distance from the identity"),
    "predicted variance, last block": (("theory", "predicted"), _last, "from sizes of weights, attention and gates"),
    "measured": (("theory", "measured"), _last, "variance of the last block, of the same sequences"),
    "error": (("theory", "relative_error"), _last, "of the prediction, relative"),
}


def headlines(run: RunData) -> list[str]:
    """The cells of HEADLINES for a run; a dash for what it lacks or what is not finite."""
    found = [(find(run.scores, path), show) for path, show, _ in HEADLINES.values()]
    return ["–" if value is None or (isinstance(value, list) and None in value) else show(value) for value, show in found]
