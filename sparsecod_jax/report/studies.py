"""Do sparser models have smaller variance and more useful blocks? All runs of all studies in one figure."""

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
import scipy.stats

from sparsecod_jax.report.claims import judge
from sparsecod_jax.report.document import Alarm, Document, Figure, Heading, Part, Series, Table, Text
from sparsecod_jax.report.measures import measure
from sparsecod_jax.report.study import LAST_VARIANCE, StudyData, answer

DENSITY, VARIANCE, USEFULNESS, CAUSAL, PERMUTATION = "density", "last-block variance", "usefulness", "causal", "permutation"
MEASURES = {
    DENSITY: "derived/density",
    VARIANCE: LAST_VARIANCE,
    USEFULNESS: "scores/usefulness/score",
    CAUSAL: "scores/causal/score",
    PERMUTATION: "scores/permutation/score",
}
SURE = 0.05  # a p below it catches the eye
FEWEST = 4  # runs of which a rank correlation says anything


def document(title: str, studies: list[StudyData]) -> Document:
    """The answers of all studies, then the paper's central claim over all their runs."""
    parts: list[Part] = [Table(["study", "question", "answer"], [_answer(study) for study in studies])]
    parts += [Heading("Density, variance and scores over all runs"), *_central(studies)]
    return Document(title, parts)


def _answer(study: StudyData) -> list[str]:
    verdicts = [judge(claim, study.finished) for claim in study.claims]
    return [study.name, study.described["question"], answer(study, verdicts)]


def _central(studies: list[StudyData]) -> list[Part]:
    reading = (
        "Density is attention density times the share of weights that are not near zero times the share of experts that a token uses."
        " The paper's claim: the less dense, the smaller the variance of the last block, and the more useful its blocks. Studies differ in"
        " more than density, so a correlation across them is no effect. A run that studies share counts once across all."
    )
    figures: list[Part] = []
    for x, y in ((DENSITY, VARIANCE), (DENSITY, USEFULNESS), (VARIANCE, USEFULNESS), (VARIANCE, CAUSAL), (VARIANCE, PERMUTATION)):
        clouds = [cloud for study in studies if (cloud := _cloud(study, x, y)).x]
        figures.append(Figure(f"{y.capitalize()} against {x}", "One point a run, a colour a study.", x, y, clouds, log_y=y == VARIANCE))
    return [Text(reading, small=True), *figures, Heading("Rank correlations"), _correlations(studies)]


def _points(study: StudyData) -> dict[str, dict[str, float | None]]:
    """All measures of each scored run, by the run's identity, which shared runs have in common."""
    described = study.described["runs"]
    scored = [run for run in study.finished.values() if run.scores]
    return {described[run.name]["identity"]: {label: measure(run, name) for label, name in MEASURES.items()} for run in scored}


def _both(points: Iterable[dict[str, float | None]], a: str, b: str) -> list[tuple[float, float]]:
    """Two measures of those runs that have both."""
    pairs = ((values[a], values[b]) for values in points)
    return [(first, second) for first, second in pairs if first is not None and second is not None]


def _cloud(study: StudyData, x: str, y: str) -> Series:
    runs = [run for run in study.finished.values() if measure(run, MEASURES[x]) is not None and measure(run, MEASURES[y]) is not None]
    xs, ys = ([measure(run, MEASURES[label]) or 0.0 for run in runs] for label in (x, y))
    return Series(study.name, study.name, xs, ys, points=True, names=[run.name for run in runs])


def _correlations(studies: list[StudyData]) -> Table:
    """Spearman's rank correlation of every pair of measures, within each study and across all."""
    pairs = list(itertools.combinations(MEASURES, 2))
    groups = {study.name: _points(study) for study in studies}
    groups["across all"] = {identity: values for points in groups.values() for identity, values in points.items()}
    rows = []
    for name, points in groups.items():
        rows.append([name, str(len(points)), *(_spearman(_both(points.values(), a, b)) for a, b in pairs)])
    return Table(["study", "runs", *(f"{a} and {b}" for a, b in pairs)], rows, ["-1 opposite order, 0 none, 1 the same order"])


def _spearman(both: list[tuple[float, float]]) -> str:
    if len(both) < FEWEST or any(len(set(column)) < 2 for column in zip(*both, strict=True)):
        return "–"
    found: Any = scipy.stats.spearmanr(np.array(both))
    text = f"{found.statistic:+.2f} (p {found.pvalue:.2g})"
    return Alarm(text) if found.pvalue < SURE else text
