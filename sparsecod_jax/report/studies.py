"""Do sparser models have smaller variance and more useful blocks? All runs of all studies together."""

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
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
FEWEST = 4  # runs of which a rank correlation says anything


def document(title: str, studies: list[StudyData]) -> Document:
    """The answers of all studies, then the paper's central claim over all their runs."""
    parts: list[Part] = [
        Table(
            ["study", "question", "answer", "runs"],
            [_answer(study) for study in studies],
        )
    ]
    parts += [Heading("Density, variance and scores over all runs"), *_central(studies)]
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
    reading = (
        "Density is attention density times the share of weights that are not near zero"
        " times the share of experts that a token uses. The paper's claim: the less dense,"
        " the smaller the variance of the last block, and the more useful its blocks."
        " Studies differ in more than density, and in the length of the sequences that are"
        " scored, so a correlation across studies does not show an effect of density."
        " A run that several studies share counts once across all."
    )
    figures: list[Part] = []
    against_variance = [(VARIANCE, score) for score in SCORES]
    for x, y in [(DENSITY, VARIANCE), (DENSITY, USEFULNESS), *against_variance]:
        clouds = [cloud for study in studies if (cloud := _cloud(study, x, y)).x]
        title, points = (
            f"{y.capitalize()} against {x}",
            "One point per run, one colour per study.",
        )
        figures.append(
            Figure(
                title, points, x, y, clouds, log_y=y == VARIANCE, log_x=x == VARIANCE
            )
        )
    return [
        Text(reading, small=True),
        *figures,
        Heading("Rank correlations"),
        _correlations(studies),
    ]


def _points(study: StudyData) -> dict[str, dict[str, float | None]]:
    """All measures of each scored run, by the run's identity, which shared runs have in common."""
    described = study.described["runs"]
    scored = [run for run in study.finished.values() if run.scores]
    return {
        described[run.name]["identity"]: {
            label: measure(run, name) for label, name in MEASURES.items()
        }
        for run in scored
    }


def _both(
    points: Iterable[dict[str, float | None]], a: str, b: str
) -> list[tuple[float, float]]:
    """Two measures of those runs that have both."""
    pairs = ((values[a], values[b]) for values in points)
    return [
        (first, second)
        for first, second in pairs
        if first is not None and second is not None
    ]


def _cloud(study: StudyData, x: str, y: str) -> Series:
    names = {entry["identity"]: name for name, entry in study.described["runs"].items()}
    points = {names[identity]: values for identity, values in _points(study).items()}
    shown = [name for name, values in points.items() if _both([values], x, y)]
    both = _both(points.values(), x, y)
    return Series(
        study.name,
        study.name,
        [a for a, _ in both],
        [b for _, b in both],
        points=True,
        names=shown,
    )


def _correlations(studies: list[StudyData]) -> Table:
    """Spearman's rank correlation of every pair of measures, within each study and across all."""
    pairs = list(itertools.combinations(MEASURES, 2))
    groups = {study.name: _points(study) for study in studies}
    groups["across all"] = {
        identity: values
        for points in groups.values()
        for identity, values in points.items()
    }
    rows = []
    for name, points in groups.items():
        rows.append(
            [name, *(_spearman(_both(points.values(), a, b)) for a, b in pairs)]
        )
    meanings = [
        "-1: reverse order, 1: same order",
        "number of runs in brackets; seeds of an arm are not independent, so no p-value is given",
    ]
    return Table(["study", *(f"{a} and {b}" for a, b in pairs)], rows, meanings)


def _spearman(both: list[tuple[float, float]]) -> str:
    if len(both) < FEWEST or any(
        len(set(column)) < 2 for column in zip(*both, strict=True)
    ):
        return "–"
    found: Any = scipy.stats.spearmanr(np.array(both))
    return f"{found.statistic:+.2f} ({len(both)})"
