"""The report of several studies."""

import dataclasses
from typing import Any

import pytest
import scipy.stats

from sparsecod_jax.errors import ConfigError
from sparsecod_jax.report import studies
from sparsecod_jax.report.document import Figure, Table, Text
from sparsecod_jax.report.writing import write_report
from tests.support import study_dirs


@pytest.fixture
def folder(tmp_path):
    """Two studies; the second shares the flat runs of the first."""

    def by_depth(run):
        return 2.0, 8.0 + run.experiment.model.n_layers + run.seed

    def by_width(run):
        return 2.0, 20.0 - run.seed

    arms = {"flat": {"model.n_layers": 2}, "wide": {"model.d_ff": 512}}
    width = dataclasses.replace(study_dirs.STUDY, arms=arms, claims=())
    first = study_dirs.loaded(tmp_path / "depth", by_depth)
    second = study_dirs.loaded(tmp_path / "width", by_width, width)
    return tmp_path, [first, second]


def _table(document, column):
    tables = [part for part in document.parts if isinstance(part, Table)]
    return next(table for table in tables if column in table.columns)


def test_one_figure_has_the_runs_of_all_studies(folder):
    document = studies.document("all", folder[1])
    drawn = [part for part in document.parts if isinstance(part, Figure)]
    figures = {figure.title: figure for figure in drawn}
    figure = figures["Last-block variance against density"]
    assert [series.label for series in figure.series] == ["depth", "width"]
    assert [len(series.x) for series in figure.series] == [6, 6]
    assert figure.series[0].y[0] == pytest.approx(10.0)
    assert (figure.log_x, figure.log_y) == (False, True)
    usefulness = figures["Usefulness against last-block variance"]
    assert (usefulness.log_x, usefulness.log_y) == (True, False)
    texts = [part.text for part in document.parts if isinstance(part, Text)]
    caution = "a correlation across studies does not show an effect"
    assert any(caution in text for text in texts)


def test_rank_correlations_are_those_of_scipy_and_shared_runs_count_once(folder):
    table = _table(studies.document("all", folder[1]), "density and causal")
    column = list(table.columns).index("last-block variance and usefulness")
    by_study = {row[0]: row for row in table.rows}
    # The usefulness of these runs is 1 / variance.
    assert by_study["depth"][column].startswith("-1.00")
    assert by_study["across all"][column] == "-1.00 (9)"
    variances = [10.0, 11.0, 12.0, 12.0, 13.0, 14.0]
    causal = list(table.columns).index("last-block variance and causal")
    expected: Any = scipy.stats.spearmanr(variances, [2 / value for value in variances])
    assert by_study["depth"][causal] == f"{expected.statistic:+.2f} (6)"


def test_a_folder_of_studies_gets_one_report(folder):
    page = write_report(str(folder[0]))
    assert page.parent == folder[0]
    assert "Rank correlations" in page.read_text()
    assert "across all" in (folder[0] / "report.md").read_text()


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no run"):
        write_report(str(tmp_path))
