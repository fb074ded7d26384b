"""What does each layer contribute?

Layer scores in reports: figures and table columns, as the catalogue lists them.
"""

from typing import Any

import numpy as np

from sparsecod_jax.analysis.catalogue import IN_REPORTS, Column, Curve, Matrix, Path
from sparsecod_jax.report.document import Figure, Heatmap, Series, short
from sparsecod_jax.report.measures import find
from sparsecod_jax.report.runs import RunData

COLUMNS = [column for score in IN_REPORTS for column in score.columns]
CURVES = [curve for score in IN_REPORTS for curve in score.curves]
MATRICES = [matrix for score in IN_REPORTS for matrix in score.matrices]


def figures(runs: list[RunData]) -> list[Figure | Heatmap]:
    """The figures of those scores that any run has."""
    scored = [run for run in runs if run.scores]
    drawn: list[Figure | Heatmap] = []
    for curve in CURVES:
        figure = _figure(scored, curve)
        if figure.series:
            drawn.append(figure)
    for matrix in MATRICES:
        drawn += _heatmaps(scored, matrix)
    return drawn


def _figure(runs: list[RunData], curve: Curve) -> Figure:
    """The curves of all runs that have the score."""
    series: list[Series] = []
    for run in runs:
        series += _curves(run, curve)
    return Figure(
        title=curve.title,
        reading=curve.reading,
        x_label="block",
        y_label=curve.unit,
        series=series,
        log_y=curve.log,
    )


def _curves(run: RunData, curve: Curve) -> list[Series]:
    """The curve of one run, after the predicted one where there is such."""
    if curve.predicted is not None:
        predicted = _series(run, curve.predicted, "predicted", dashed=True)
        return predicted + _series(run, curve.path, "measured")
    if curve.probe_length is not None:
        length = find(run.scores, curve.probe_length)
        return _series(run, curve.path, f"{length} tokens")
    return _series(run, curve.path)


def _series(
    run: RunData, path: Path, detail: str = "", *, dashed: bool = False
) -> list[Series]:
    """One value per block, the mean over heads; nothing where the run has none."""
    values = find(run.scores, path)
    if values is None:
        return []
    label = f"{run.name}, {detail}" if detail else run.name
    means = [_mean_over_heads(value) for value in values]
    blocks = list(range(1, len(means) + 1))
    return [Series(label, run.name, blocks, means, dashed)]


def _mean_over_heads(value: Any) -> float | None:
    """The mean over heads, or the value of a block that has one for all heads."""
    heads = _as_list(value)
    if None in heads:
        return None
    return float(np.mean(heads))


def _as_list(value: Any) -> list[Any]:
    if isinstance(value, list):
        return value
    return [value]


def _heatmaps(runs: list[RunData], matrix: Matrix) -> list[Heatmap]:
    """One per run that has the matrix, all with one colour scale, so that they compare."""
    matrices = {}
    for run in runs:
        rows = find(run.scores, matrix.path)
        if rows is not None:
            matrices[run.name] = rows
    largest = max((_largest(rows) for rows in matrices.values()), default=0.0)
    return [
        Heatmap(
            title=f"{matrix.title}: {name}",
            reading=matrix.reading,
            x_label=matrix.x_label,
            y_label=matrix.y_label,
            values=rows,
            largest=largest,
            signed=matrix.signed,
        )
        for name, rows in matrices.items()
    ]


def _largest(rows: list[list[float | None]]) -> float:
    """The largest magnitude in a matrix."""
    values = [value for row in rows for value in row if value is not None]
    return max(map(abs, values), default=0.0)


def cells(run: RunData) -> list[str]:
    """The cells of COLUMNS for a run; a dash where it has no finite value."""
    return [_cell(column, find(run.scores, column.path)) for column in COLUMNS]


def _cell(column: Column, value: Any) -> str:
    numbers = _as_list(value)
    if None in numbers:
        return "–"
    if column.interval:
        low, high = numbers
        return f"{low:.4f} to {high:.4f}"
    return short(numbers[-1])
