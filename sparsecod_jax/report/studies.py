"""Do sparser models have smaller variance and more useful blocks?

Report of several studies: the answer of each, then all runs of all studies together.
"""

import itertools
from collections.abc import Iterable
from typing import Any

import scipy.stats

from sparsecod_jax.analysis.catalogue import CATALOGUE
from sparsecod_jax.report.document import (
    Document,
    Figure,
    Heading,
    Part,
    Series,
    Table,
    Text,
)
from sparsecod_jax.report.measures import measure
from sparsecod_jax.report.study import PROBE_VARIANCE, answer, progress
from sparsecod_jax.report.study_data import StudyData
from sparsecod_jax.report.verdicts import judge

DENSITY, VARIANCE, USEFULNESS = "density", "last-block variance", "usefulness"
SCORES = {
    name: score.across_studies
    for name, score in CATALOGUE.items()
    if score.across_studies
}
MEASURES = {DENSITY: "derived/density", VARIANCE: PROBE_VARIANCE, **SCORES}
FEWEST = 4  # runs from which on a rank correlation is shown

Values = dict[str, float | None]  # of one run, by the names in MEASURES


def document(title: str, studies: list[StudyData]) -> Document:
    """The answers of all studies, then the paper's central claim over all their runs."""
    columns = ["study", "question", "answer", "runs"]
    parts: list[Part] = [
        Table(columns, [_answer(study) for study in studies]),
        Heading("Density, variance and scores over all runs"),
        *_central(studies),
        Heading("Rank correlations"),
        _correlations(studies),
    ]
    return Document(title, parts)


def _answer(study: StudyData) -> list[str]:
    verdicts = [judge(claim, study.finished) for claim in study.claims]
    return [
        study.name,
        study.described["question"],
        answer(study, verdicts),
        progress(study),
    ]


def _central(studies: list[StudyData]) -> list[Part]:
    """The figures on which the paper's central claim can be read."""
    reading = (
        "Density is attention density times the share of weights that are not near zero"
        " times the share of experts that a token uses. The paper's claim: the less dense,"
        " the smaller the variance of the last block, and the more useful its blocks."
        " Studies differ in more than density, and in the length of the sequences that are"
        " scored, so a correlation across studies does not show an effect of density."
        " A run that several studies share counts once across all."
    )
    return [
        Text(reading, small=True),
        _figure(studies, DENSITY, VARIANCE),
        _figure(studies, DENSITY, USEFULNESS),
        *[_figure(studies, VARIANCE, score) for score in SCORES],
    ]


def _figure(studies: list[StudyData], x: str, y: str) -> Figure:
    """One measure against another, over the runs of all studies."""
    clouds = [_cloud(study, x, y) for study in studies]
    return Figure(
        title=f"{y.capitalize()} against {x}",
        reading="One point per run, one colour per study.",
        x_label=x,
        y_label=y,
        series=[cloud for cloud in clouds if cloud.x],
        log_x=x == VARIANCE,
        log_y=y == VARIANCE,
    )


def _points(study: StudyData) -> dict[str, Values]:
    """All measures of each scored run, by the run's identity.

    A run that two studies share has the same identity in both.
    """
    points = {}
    for run in study.finished.values():
        if run.scores:
            identity = study.described["runs"][run.name]["identity"]
            points[identity] = {
                label: measure(run, name) for label, name in MEASURES.items()
            }
    return points


def _both(points: Iterable[Values], a: str, b: str) -> list[tuple[float, float]]:
    """Two measures of those runs that have both."""
    both = []
    for values in points:
        first, second = values[a], values[b]
        if first is not None and second is not None:
            both.append((first, second))
    return both


def _cloud(study: StudyData, x: str, y: str) -> Series:
    """One point for each run of a study that has both measures."""
    names = {run["identity"]: name for name, run in study.described["runs"].items()}
    points = _points(study)
    both = _both(points.values(), x, y)
    shown = [
        names[identity] for identity, values in points.items() if _both([values], x, y)
    ]
    return Series(
        label=study.name,
        group=study.name,
        x=[first for first, _ in both],
        y=[second for _, second in both],
        points=True,
        names=shown,
    )


def _correlations(studies: list[StudyData]) -> Table:
    """Spearman's rank correlation of every pair of measures, per study and across all."""
    by_study = {study.name: _points(study) for study in studies}
    across_all: dict[str, Values] = {}
    for points in by_study.values():
        across_all |= points

    pairs = list(itertools.combinations(MEASURES, 2))
    rows = []
    for name, points in (by_study | {"across all": across_all}).items():
        both = [_both(points.values(), a, b) for a, b in pairs]
        rows.append([name, *map(_spearman, both)])
    columns = ["study", *(f"{a} and {b}" for a, b in pairs)]
    meanings = [
        "-1: reverse order, 1: same order",
        "number of runs in brackets; seeds of an arm are not independent, so no p-value"
        " is given",
    ]
    return Table(columns, rows, meanings)


def _spearman(both: list[tuple[float, float]]) -> str:
    """The correlation and the number of runs; a dash where it is not defined."""
    if len(both) < FEWEST:
        return "–"
    first, second = zip(*both, strict=True)
    if len(set(first)) == 1 or len(set(second)) == 1:
        return "–"
    correlation: Any = scipy.stats.spearmanr(first, second)
    return f"{correlation.statistic:+.2f} ({len(both)})"
