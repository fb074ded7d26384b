"""The report of a study shows what its numbers show, whatever they are."""

import dataclasses
import html
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sparsecod_jax import config
from sparsecod_jax.report import published
from sparsecod_jax.report import study as report
from sparsecod_jax.report.document import Alarm, Figure, Table, Text, short
from sparsecod_jax.report.measures import measure
from sparsecod_jax.report.study_data import load_study
from sparsecod_jax.report.writing import write_report
from sparsecod_jax.storage.records import read_json, write_json
from sparsecod_jax.study.study import load
from tests.support import study_dirs

CHROMIUM = shutil.which("chromium")
SWEEPS = sorted(Path("configs/sweeps").glob("*.py"))
JACOBIAN = "Distance of the Jacobian from the identity, by depth, ours"
NOISE = (0.0, 0.7, -0.6)


def _numbers(effect):
    """Bits per byte and variance; in deep runs the variance is larger by that factor."""

    def numbers(run):
        factor = effect if run.arm == "deep" else 1.0
        return 2.0, 8.0 * factor * (1 + 0.01 * run.seed)

    return numbers


def _noise(run):
    """No effect of depth, but a large spread over seeds."""
    noise = NOISE[run.seed] if run.arm == "deep" else 0.0
    return 2.0, 8.0 * (1 + noise)


STUDIES = {
    "present": (_numbers(3.0), "supported"),
    "reversed": (_numbers(1 / 3), "contradicted"),
    "noise": (_noise, "undecided"),
}


def _tables(document):
    return [part for part in document.parts if isinstance(part, Table)]


def _table(document, *columns):
    """The table whose first columns these are."""
    for table in _tables(document):
        if tuple(table.columns)[: len(columns)] == columns:
            return table
    raise AssertionError(f"no table has {columns}")


def _figures(document):
    """The figures by their titles."""
    figures = [part for part in document.parts if isinstance(part, Figure)]
    return {figure.title: figure for figure in figures}


def _texts(document):
    return [part.text for part in document.parts if isinstance(part, Text)]


@pytest.mark.parametrize(("numbers", "outcome"), STUDIES.values(), ids=STUDIES)
def test_the_outcome_is_that_of_the_numbers(numbers, outcome, tmp_path):
    document = report.document(study_dirs.loaded(tmp_path / "study", numbers))
    deeper, better = _table(document, "claim", "outcome").rows
    assert deeper[:2] == [study_dirs.DEEPER.text, outcome]
    assert better[:2] == [study_dirs.BETTER.text, "undecided"]
    assert isinstance(deeper[1], Alarm) == (outcome == "contradicted")
    headline = _texts(document)[0]
    for word in ("supported", "contradicted", "undecided"):
        part = re.search(rf"{word}: (.*?)\.(?: [A-Z]|$)", headline, re.IGNORECASE)
        assert part
        assert (study_dirs.DEEPER.text in part[1]) == (word == outcome), headline


def test_diverged_and_misconfigured_runs_are_named(tmp_path):
    directory = study_dirs.write(tmp_path / "study", deep_s1="diverged")
    other = config.Experiment(steps=7, schedule=config.Schedule(warmup_steps=1))
    write_json(directory.run("flat-s2").config, config.to_dict(other))
    study = load_study(directory)
    document = report.document(study)
    progress = "4 of 6 runs finished: deep-s1 is diverged, flat-s2 is misconfigured."
    assert _texts(document)[1] == progress
    assert set(study.finished) == {("flat", 0), ("deep", 0), ("flat", 1), ("deep", 2)}
    assert len(_table(document, "run", "status").rows) == 6


def test_large_effects_are_written_in_full(tmp_path):
    study = study_dirs.loaded(tmp_path / "study", _numbers(2379.0))
    headline = _texts(report.document(study))[0]
    assert f"{study_dirs.DEEPER.text} (x 2,379)" in headline


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (9999.6, 4, "10,000"),
        (999.6, 3, "1,000"),
        (3933.4, 4, "3,933"),
        (0.012345, 3, "0.0123"),
        (2.5e6, 3, "2.5e+06"),
        (-1234.5, 3, "-1,234"),
    ],
)
def test_numbers_are_short_and_plain(value, digits, text):
    assert short(value, digits) == text


def test_equal_values_have_no_range(tmp_path):
    study = study_dirs.loaded(tmp_path / "study", lambda run: (2.0, 8.0 + run.seed))
    arms = _table(report.document(study), "arm", "seeds")
    row = dict(zip(arms.columns, arms.rows[0], strict=True))
    assert row["bits per byte"] == "2"
    assert row["last-block variance"] == "9 (8 to 10)"
    assert row["growth over blocks"] == "18 (16 to 20)"


def test_a_run_that_has_not_begun_is_named(tmp_path):
    directory = study_dirs.write(tmp_path / "study")
    shutil.rmtree(directory.path / "runs" / "deep-s2")
    texts = _texts(report.document(load_study(directory)))
    assert "5 of 6 runs finished: deep-s2 is missing." in texts


def test_a_study_without_any_run_has_a_report(tmp_path):
    directory = study_dirs.write(tmp_path / "study")
    shutil.rmtree(directory.path / "runs")
    page = write_report(str(tmp_path / "study"))
    assert "0 of 6 runs finished" in page.read_text()


def test_published_numbers_are_shown_with_ours(tmp_path):
    document = report.document(study_dirs.loaded(tmp_path / "study", _numbers(3.0)))
    first_row = _table(document, "L").rows[0]
    assert list(first_row) == ["12", "0.355", "0.985", "1.0"]
    ours = _table(document, "arm", "causal", "permutation")
    assert list(ours.columns)[3:] == ["usefulness", "usefulness, as published"]
    assert ours.rows[0][0] == "flat"
    # The scores are 2 / 8, 2 / 8.08 and 2 / 8.16.
    assert ours.rows[0][1].startswith("0.2475 (0.2451 to 0.25)")


def test_published_curves_are_shown_with_ours(tmp_path):
    document = report.document(study_dirs.loaded(tmp_path / "study", _numbers(3.0)))
    figures = _figures(document)
    theirs = figures["Variance of the last block, by depth, published"]
    own = figures["Variance of the last block, by depth, ours"]
    labels = [f"{depth}, published" for depth in (12, 16, 24, 32)]
    assert [series.label for series in theirs.series] == labels
    assert theirs.series[0].y[:2] == [65, 465]
    assert own.series[0].y[-1] == pytest.approx(8.0)
    assert len(own.series) == 6


def test_a_run_with_some_of_its_scores_is_named_and_drawn_as_far_as_possible(tmp_path):
    directory = study_dirs.write(tmp_path / "study")
    file = directory.run("flat-s0").analysis.scores
    scores = read_json(file)
    some = {name: scores[name] for name in ("usefulness", "variance")}
    write_json(file, some | {"sequences": {"usefulness": 4}})
    document = report.document(load_study(directory))
    assert _texts(document)[1] == "6 of 6 runs finished; not fully scored: flat-s0."
    assert len(_figures(document)[JACOBIAN].series) == 5


def test_a_jacobian_of_an_earlier_version_is_left_out_and_named(tmp_path, capsys):
    directory = study_dirs.write(tmp_path / "study")
    file = directory.run("flat-s0").analysis.scores
    scores = read_json(file)
    del scores["computed_with"]
    write_json(file, scores)
    document = report.document(load_study(directory))
    assert len(_figures(document)[JACOBIAN].series) == 5
    printed = capsys.readouterr().err
    reason = "its Jacobian is from an earlier version, perhaps from a faulty compiler"
    assert f"flat-s0: {reason}" in printed
    assert "run `sparsecod analyze --workdir=" in printed


def test_a_run_on_the_same_data_elsewhere_is_the_same_run(tmp_path):
    directory = study_dirs.write(tmp_path / "study")
    file = directory.run("flat-s1").config
    values = read_json(file)
    values["data"]["path"] = "gs://bucket/data"
    write_json(file, values)
    assert _texts(report.document(load_study(directory)))[1] == "6 of 6 runs finished."


def test_claims_without_numbers_are_not_counted_as_tested(tmp_path):
    directory = study_dirs.write(
        tmp_path / "study", deep_s0="failed", deep_s1="failed", deep_s2="failed"
    )
    headline = _texts(report.document(load_study(directory)))[0]
    assert headline.startswith("Of 2 claims 0 could be tested.")


@pytest.mark.parametrize("scale", ["nano", "mini", "paper"])
@pytest.mark.parametrize("file", SWEEPS, ids=[file.stem for file in SWEEPS])
def test_what_the_studies_in_configs_name_exists(file, scale, tmp_path):
    study = load(f"{file}:{scale}")
    for name in study.published:
        if name.startswith("tables/"):
            assert published.columns(name)
        else:
            assert published.curves(name).series
    scored = study_dirs.loaded(tmp_path / "study").runs["flat", 0]
    router = {"router/gate_square_sum": [0.1, 0.2]}
    run = dataclasses.replace(scored, lines=[line | router for line in scored.lines])
    metrics = [claim.metric for claim in study.claims]
    for metric in (*metrics, *study.mechanism.values()):
        assert measure(run, metric) is not None, metric


def test_what_was_declared_is_shown(tmp_path):
    document = report.document(study_dirs.loaded(tmp_path / "study"))
    rows = [tuple(row) for row in _tables(document)[0].rows]
    assert rows[0] == ("held fixed", "width, tokens")
    assert rows[2:] == [("seeds", "0, 1, 2"), ("not testable here", "accuracy")]


def test_markdown_has_the_same_figures_as_images(tmp_path):
    root = study_dirs.write(tmp_path / "study", numbers=_numbers(3.0)).path
    page = write_report(str(root)).read_text()
    text = (root / "report.md").read_text()
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    headings = [f"### {html.unescape(title)}" for title in titles]
    assert headings == re.findall(r"### .*", text)
    shown = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert len(shown) == page.count("<section>")
    for file in shown:
        assert (root / file).read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not on PATH")
def test_a_browser_draws_every_figure_without_an_error(tmp_path):
    study = study_dirs.write(tmp_path / "study", numbers=_noise, deep_s1="diverged")
    page = write_report(str(study.path))
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--virtual-time-budget=20000",
        "--enable-logging=stderr",
        f"--user-data-dir={tmp_path}/profile",
        "--dump-dom",
    ]
    drawn = subprocess.run(
        [str(CHROMIUM), *flags, f"file://{page}"],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    sections = re.findall(r"<section>.*?</section>", drawn.stdout, re.DOTALL)
    assert len(sections) == page.read_text().count("<section>") > 10
    assert all('class="main-svg"' in section for section in sections)
    assert "CONSOLE" not in drawn.stderr
