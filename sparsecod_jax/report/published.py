"""What did the paper find?

Published numbers: the tables and digitised curves of the paper, from `published.json`.
"""

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
    "curves/last_layer_variance_by_step/depth": (
        "Variance of the last block, by depth"
    ),
    "curves/last_layer_variance_by_step/weight_decay": (
        "Variance of the last block, by weight decay"
    ),
    "curves/last_layer_variance_by_step/sequence_length": (
        "Variance of the last block, by training length"
    ),
    "curves/last_layer_variance_by_step/gqa": (
        "Variance of the last block, by query heads per key/value head"
    ),
    "curves/last_layer_variance_by_step/moe": (
        "Variance of the last block, dense models and mixtures of experts"
    ),
    "curves/jacobian_distance_by_block": (
        "Distance of the Jacobian from the identity, by depth"
    ),
}
# Our columns for a published one, and their metrics. Accuracy has none: `sparsecod eval`
# measures it, after a study.
COLUMNS = {
    "perplexity": {"perplexity": "final/perplexity"},
    "usefulness": {
        "usefulness": "scores/usefulness/share_above/1.10/share",
        "usefulness, as published": (
            "scores/usefulness/as_published/share_above/1.10/share"
        ),
    },
    "causal": {"causal": "scores/causal/score"},
    "permutation": {"permutation": "scores/permutation/score"},
}
MEANINGS = (
    "perplexity at the study's evaluation length; the published one at each run's own",
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
    file = resources.files("sparsecod_jax.report").joinpath("published.json")
    return json.loads(file.read_text())


def _rows(name: str) -> list[dict[str, Any]]:
    return _read()["tables"][name.removeprefix("tables/")]


def source() -> Part:
    """Where the numbers are from, and what they don't show."""
    numbers = _read()
    cautions = "; ".join(numbers["cautions"])
    text = f"Published: {numbers['source']}. Cautions: {cautions}."
    return Text(text, small=True)


def table(name: str) -> Table:
    """A published table, as it is."""
    rows = _rows(name)
    cells = [[_cell(value) for value in row.values()] for row in rows]
    meanings = ["one seed per row; compare orderings, not values"]
    return Table(list(rows[0]), cells, meanings, f"{TITLES[name]}, published")


def columns(name: str) -> dict[str, str]:
    """Our columns for those of a published table, and their metrics."""
    ours = {}
    for column in _rows(name)[0]:
        ours |= COLUMNS.get(column, {})
    return ours


def curves(name: str) -> Figure:
    """Published curves, dashed, without the zeros, which a logarithmic axis can't show."""
    numbers: Any = _read()
    for part in name.split("/"):
        numbers = numbers[part]
    series = []
    for key, points in numbers.items():
        shown = sorted((float(x), y) for x, y in points.items() if y > 0)
        x = [position for position, _ in shown]
        y = [value for _, value in shown]
        series.append(Series(f"{key}, published", key, x, y, dashed=True))
    x_label, y_label = AXES[name.split("/")[1]]
    return Figure(
        title=f"{TITLES[name]}, published",
        reading=(
            "Read off the paper's figure. Compare shapes and orderings, not magnitudes:"
            " the paper's own figures differ in them."
        ),
        x_label=x_label,
        y_label=y_label,
        series=series,
        log_y=True,
    )


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
