"""What did the paper find? Its tables and digitised curves, beside ours."""

import json
from importlib import resources
from typing import Any

from sparsecod_jax.report.document import Figure, Part, Series, Table, Text

TITLES = {
    "tables/depth_scores": "Scores against depth",
    "tables/weight_decay": "Weight decay",
    "tables/sequence_length": "Training length",
    "tables/gqa": "Query heads per key/value head (G)",
    "tables/moe": "Dense models and mixtures of experts",
    "tables/recipe_ladder": "The recipe, step by step",
    "curves/last_layer_variance_by_step/depth": "Variance of the last block, by depth",
    "curves/last_layer_variance_by_step/weight_decay": "Variance of the last block, by weight decay",
    "curves/last_layer_variance_by_step/sequence_length": "Variance of the last block, by training length",
    "curves/last_layer_variance_by_step/gqa": "Variance of the last block, by query heads per key/value head",
    "curves/last_layer_variance_by_step/moe": "Variance of the last block, dense models and mixtures of experts",
    "curves/jacobian_distance_by_block": "Distance of the Jacobian from the identity, by depth",
}
# What a published column is called in our runs; accuracy comes from `sparsecod eval`, after a study.
COLUMNS = {
    "perplexity": {"perplexity": "final/perplexity"},
    "usefulness": {
        "usefulness": "scores/usefulness/share_above/1.10/share",
        "usefulness, as published": "scores/usefulness/as_published/share_above/1.10/share",
    },
    "causal": {"causal": "scores/causal/score"},
    "permutation": {"permutation": "scores/permutation/score"},
}
MEANINGS = (
    "perplexity at the study's evaluation length; the published one at each run's own length",
    "usefulness is the share of blocks whose affine map raises the loss by more than"
    " 10 %: first with the map as fitted, on other sequences, then as in the paper's"
    " code, with the transposed map and in sample",
    "the paper's causal score may leave out the last block of dense models",
)
AXES = {
    "last_layer_variance_by_step": ("step", "variance of the residual stream"),
    "jacobian_distance_by_block": ("block", "|J - I| / width"),
}


def _read() -> dict[str, Any]:
    return json.loads(
        resources.files("sparsecod_jax.report").joinpath("published.json").read_text()
    )


def source() -> Part:
    """Where the numbers are from, and what they can't carry."""
    found = _read()
    return Text(
        f"Published: {found['source']}. Cautions: {'; '.join(found['cautions'])}.",
        small=True,
    )


def table(name: str) -> Table:
    """A published table as it is."""
    rows = _read()["tables"][name.removeprefix("tables/")]
    meanings = ["one seed per row; compare orderings, not values"]
    return Table(
        list(rows[0]),
        [[_cell(value) for value in row.values()] for row in rows],
        meanings,
        f"{TITLES[name]}, published",
    )


def columns(name: str) -> dict[str, str]:
    """Those columns of a published table that our runs have, and what they are called there."""
    first = _read()["tables"][name.removeprefix("tables/")][0]
    return {
        ours: metric
        for column in first
        for ours, metric in COLUMNS.get(column, {}).items()
    }


def curves(name: str) -> Figure:
    """Published curves, dashed; what is read off as 0 has no place on a logarithmic axis."""
    found: Any = _read()
    for part in name.split("/"):
        found = found[part]
    x_label, y_label = AXES[name.split("/")[1]]
    series = []
    for key, points in found.items():
        shown = sorted((float(x), y) for x, y in points.items() if y > 0)
        series.append(
            Series(
                f"{key}, published",
                key,
                [x for x, _ in shown],
                [y for _, y in shown],
                dashed=True,
            )
        )
    reading = "Read off the paper's figure. Compare shapes and orderings, not magnitudes: the paper's own figures differ in them."
    return Figure(
        f"{TITLES[name]}, published", reading, x_label, y_label, series, log_y=True
    )


def _cell(value: Any) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)
