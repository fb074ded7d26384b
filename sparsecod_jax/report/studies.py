"""Do sparser models have smaller variance and more useful blocks? All runs of all studies in one figure."""

import itertools
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


def _points(study: StudyData) -> dict[str, tuple[float | None, ...]]:
    return {run.name: tuple(measure(run, name) for name in MEASURES.values()) for run in study.finished.values() if run.scores}


def _cloud(study: StudyData, x: str, y: str) -> Series:
    places = [list(MEASURES).index(label) for label in (x, y)]
    points = {name: [values[place] for place in places] for name, values in _points(study).items()}
    whole = {name: (a, b) for name, (a, b) in points.items() if a is not None and b is not None}
    return Series(study.name, study.name, [a for a, _ in whole.values()], [b for _, b in whole.values()], points=True, names=list(whole))


def _correlations(studies: list[StudyData]) -> Table:
    """Spearman's rank correlation of every pair of measures, within each study and across all."""
    pairs = list(itertools.combinations(MEASURES, 2))
    groups = {study.name: list(_points(study).values()) for study in studies}
    groups["across all"] = sorted({values for rows in groups.values() for values in rows}, key=repr)
    rows = []
    for name, values in groups.items():
        rows.append([name, str(len(values)), *(_spearman(values, a, b) for a, b in pairs)])
    return Table(["study", "runs", *(f"{a} and {b}" for a, b in pairs)], rows, ["-1 opposite order, 0 none, 1 the same order"])


def _spearman(rows: list[tuple[float | None, ...]], a: str, b: str) -> str:
    places = [list(MEASURES).index(label) for label in (a, b)]
    both = [pair for row in rows if None not in (pair := tuple(row[place] for place in places))]
    if len(both) < FEWEST or any(len(set(column)) < 2 for column in zip(*both, strict=True)):
        return "–"
    found: Any = scipy.stats.spearmanr(np.array(both, float))
    text = f"{found.statistic:+.2f} (p {found.pvalue:.2g})"
    return Alarm(text) if found.pvalue < SURE else text
