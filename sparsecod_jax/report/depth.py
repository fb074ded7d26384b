"""What does each layer contribute? Figures and columns of scores, as the catalogue lists them."""

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
    """Those of the scores that any run has."""
    scored = [run for run in runs if run.scores]
    drawn = [_figure(scored, curve) for curve in CURVES]
    heatmaps = [heatmap for matrix in MATRICES for heatmap in _heatmaps(scored, matrix)]
    return [figure for figure in drawn if figure.series] + heatmaps


def _figure(runs: list[RunData], curve: Curve) -> Figure:
    series: list[Series] = []
    for run in runs:
        if curve.predicted is None:
            series += _series(run, curve.path, f"{run.name}{_probe_length(run, curve)}")
        else:
            series += _series(
                run, curve.predicted, f"{run.name}, predicted", dashed=True
            )
            series += _series(run, curve.path, f"{run.name}, measured")
    return Figure(
        curve.title, curve.reading, "block", curve.unit, series, log_y=curve.log
    )


def _probe_length(run: RunData, curve: Curve) -> str:
    return (
        f", {find(run.scores, curve.probe_length)} tokens" if curve.probe_length else ""
    )


def _series(
    run: RunData, path: Path, label: str, *, dashed: bool = False
) -> list[Series]:
    """One value per block, of values per head their mean; nothing where the run has none."""
    values = find(run.scores, path)
    if values is None:
        return []
    heads = [value if isinstance(value, list) else [value] for value in values]
    means = [None if None in each else float(np.mean(each)) for each in heads]
    blocks = list(range(1, len(means) + 1))
    return [Series(label, run.name, blocks, means, dashed)]


def _heatmaps(runs: list[RunData], matrix: Matrix) -> list[Heatmap]:
    """One per run that has the matrix, all with the same scale of colours."""
    found = {run.name: find(run.scores, matrix.path) for run in runs}
    values = {name: rows for name, rows in found.items() if rows is not None}
    every = [value for rows in values.values() for row in rows for value in row]
    largest = max((abs(value) for value in every if value is not None), default=0.0)
    labels = (matrix.reading, matrix.x_label, matrix.y_label)
    drawn = []
    for name, rows in values.items():
        title = f"{matrix.title}: {name}"
        drawn.append(Heatmap(title, *labels, rows, largest, matrix.signed))
    return drawn


def cells(run: RunData) -> list[str]:
    """The cells of COLUMNS for a run; a dash for what it lacks or what is not finite."""
    return [_cell(column, find(run.scores, column.path)) for column in COLUMNS]


def _cell(column: Column, value: Any) -> str:
    numbers = value if isinstance(value, list) else [value]
    if None in numbers:
        return "–"
    if column.interval:
        return " to ".join(f"{end:.4f}" for end in numbers)
    return short(numbers[-1])
