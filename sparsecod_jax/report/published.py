"""What did the paper find? Its tables and digitised curves, beside ours."""

import json
from importlib import resources
from typing import Any

from sparsecod_jax.report.document import Figure, Part, Series, Table, Text

TITLES = {
    "tables/depth_scores": "Scores against depth",
    "tables/weight_decay": "Perplexity and useful blocks against weight decay",
    "tables/sequence_length": "Perplexity and useful blocks against training length",
    "tables/gqa": "Perplexity and useful blocks against query heads a key/value head (G)",
    "tables/moe": "Perplexity and useful blocks of dense models and mixtures",
    "tables/recipe_ladder": "The recipe, step by step",
    "curves/last_layer_variance_by_step": "Variance of the last block against step",
    "curves/jacobian_distance_by_block": "Distance of the Jacobian from the identity",
}
# What a published column is called in our runs; accuracy comes from `sparsecod eval`, after a study.
COLUMNS = {
    "perplexity": "final/perplexity",
    "usefulness": "scores/usefulness/share_above/1.10/share",
    "causal": "scores/causal/score",
    "permutation": "scores/permutation/score",
}
AXES = {
    "last_layer_variance_by_step": ("step", "variance of the residual stream"),
    "jacobian_distance_by_block": ("block", "|J - I| / width"),
}


def _read() -> dict[str, Any]:
    return json.loads(resources.files("sparsecod_jax.report").joinpath("published.json").read_text())


def source() -> Part:
    """Where the numbers are from, and what they can't carry."""
    found = _read()
    return Text(f"Published: {found['source']}. To be kept in mind: {'; '.join(found['cautions'])}.", small=True)


def title(name: str) -> str:
    """Of a table or a set of curves, by its name in published.json; names may go into it."""
    return next(title for known, title in TITLES.items() if name.startswith(known))


def table(name: str) -> Table:
    """A published table as it is."""
    rows = _read()["tables"][name.removeprefix("tables/")]
    return Table(list(rows[0]), [[_cell(value) for value in row.values()] for row in rows], title=f"{title(name)}, published")


def columns(name: str) -> dict[str, str]:
    """Those columns of a published table that our runs have, and what they are called there."""
    first = _read()["tables"][name.removeprefix("tables/")][0]
    return {column: COLUMNS[column] for column in first if column in COLUMNS}


def curves(name: str) -> Figure:
    """Published curves, dashed."""
    found: Any = _read()
    for part in name.split("/"):
        found = found[part]
    x_label, y_label = AXES[name.split("/")[1]]
    series = [
        Series(f"{key}, published", key, [float(x) for x in points], list(points.values()), dashed=True) for key, points in found.items()
    ]
    reading = (
        "Read off the paper's figure. Compare shapes and orderings, not sizes: the paper's own figures differ in size from one another."
    )
    return Figure(f"{title(name)}, published", reading, x_label, y_label, series, log_y=True)


def _cell(value: Any) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)
