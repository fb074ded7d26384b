"""The report of a study tells the truth, whatever the truth is."""

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
from sparsecod_jax.storage.files import read_json, write_json
from sparsecod_jax.storage.rundir import RunDir
from sparsecod_jax.study.study import load
from tests.support import study_dirs

CHROMIUM = shutil.which("chromium")
SWEEPS = sorted(Path("configs/sweeps").glob("*.py"))
NOISE = (0.0, 0.7, -0.6)


def _numbers(effect):
    """Bits and variance, of which depth changes the variance by that factor."""
    return lambda run: (
        2.0,
        8.0 * (effect if run.arm == "deep" else 1.0) * (1 + 0.01 * run.seed),
    )


def _noise(run):
    return 2.0, 8.0 * (1 + (NOISE[run.seed] if run.arm == "deep" else 0.0))


STUDIES = {
    "present": (_numbers(3.0), "supported"),
    "reversed": (_numbers(1 / 3), "contradicted"),
    "noise": (_noise, "undecided"),
}


def _document(study):
    return report.document(study)


def _tables(document):
    return [part for part in document.parts if isinstance(part, Table)]


def _texts(document):
    return [part.text for part in document.parts if isinstance(part, Text)]


@pytest.mark.parametrize(("numbers", "outcome"), STUDIES.values(), ids=STUDIES)
def test_says_what_the_numbers_say(numbers, outcome, tmp_path):
    document = _document(study_dirs.loaded(tmp_path / "study", numbers))
    claims = next(table for table in _tables(document) if "outcome" in table.columns)
    deeper, better = claims.rows
    assert deeper[:2] == [study_dirs.DEEPER.text, outcome]
    assert better[:2] == [study_dirs.BETTER.text, "undecided"]
    assert isinstance(deeper[1], Alarm) == (outcome == "contradicted")
    headline = _texts(document)[0]
    for word in ("supported", "contradicted", "undecided"):
        part = re.search(rf"{word}: (.*?)\.(?: [A-Z]|$)", headline, re.IGNORECASE)
        assert part
        assert (study_dirs.DEEPER.text in part[1]) == (word == outcome), headline


def test_names_the_run_that_diverged_and_the_one_that_is_another_run(tmp_path):
    directory = study_dirs.write(tmp_path / "study", deep_s1="diverged")
    place = RunDir(directory.path / "runs" / "flat-s2")
    other = config.from_dict(
        config.to_dict(
            config.Experiment(steps=7, schedule=config.Schedule(warmup_steps=1))
        )
    )
    write_json(place.config, config.to_dict(other))
    study = load_study(directory)
    document = _document(study)
    assert (
        _texts(document)[1]
        == "4 of 6 runs finished: deep-s1 is diverged, flat-s2 is misconfigured."
    )
    assert set(study.finished) == {("flat", 0), ("deep", 0), ("flat", 1), ("deep", 2)}
    runs = next(
        table for table in _tables(document) if table.columns[:2] == ("run", "status")
    )
    assert len(runs.rows) == 6


def test_large_effects_are_written_in_full(tmp_path):
    headline = _texts(
        _document(study_dirs.loaded(tmp_path / "study", _numbers(2379.0)))
    )[0]
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
    document = _document(
        study_dirs.loaded(tmp_path / "study", lambda run: (2.0, 8.0 + run.seed))
    )
    arms = next(
        table
        for table in _tables(document)
        if list(table.columns)[:2] == ["arm", "seeds"]
    )
    row = dict(zip(arms.columns, arms.rows[0], strict=True))
    assert (
        row["bits per byte"],
        row["last-block variance"],
        row["growth over blocks"],
    ) == ("2", "9 (8 to 10)", "18 (16 to 20)")


def test_names_what_has_not_begun(tmp_path):
    directory = study_dirs.write(tmp_path / "study")
    shutil.rmtree(directory.path / "runs" / "deep-s2")
    assert "5 of 6 runs finished: deep-s2 is missing." in _texts(
        _document(load_study(directory))
    )


def test_a_study_without_any_run_has_a_report(tmp_path):
    directory = study_dirs.write(tmp_path / "study")
    shutil.rmtree(directory.path / "runs")
    page = write_report(str(tmp_path / "study"))
    assert "0 of 6 runs finished" in page.read_text()


def test_published_numbers_stand_beside_ours(tmp_path):
    document = _document(study_dirs.loaded(tmp_path / "study", _numbers(3.0)))
    published = next(table for table in _tables(document) if table.columns[0] == "L")
    assert list(published.rows[0]) == ["12", "0.355", "0.985", "1.0"]
    ours = next(
        table
        for table in _tables(document)
        if list(table.columns)[:3] == ["arm", "causal", "permutation"]
    )
    assert list(ours.columns)[3:] == ["usefulness", "usefulness, as published"]
    assert ours.rows[0][0] == "flat"
    assert ours.rows[0][1].startswith(
        "0.2475 (0.2451 to 0.25)"
    )  # 2 / 8, 2 / 8.08 and 2 / 8.16
    figures = {part.title: part for part in document.parts if isinstance(part, Figure)}
    theirs, own = (
        figures[f"Variance of the last block, by depth, {whose}"]
        for whose in ("published", "ours")
    )
    assert [series.label for series in theirs.series] == [
        f"{depth}, published" for depth in (12, 16, 24, 32)
    ]
    assert theirs.series[0].y[:2] == [65, 465]
    assert own.series[0].y[-1] == pytest.approx(8.0)
    assert len(own.series) == 6


def test_a_run_that_is_being_scored_is_named_and_drawn_as_far_as_it_is(tmp_path):
    directory = study_dirs.write(tmp_path / "study")
    file = directory.run("flat-s0").analysis.scores
    scores = read_json(file)
    write_json(
        file,
        {name: scores[name] for name in ("usefulness", "variance")}
        | {"sequences": {"usefulness": 4}},
    )
    document = _document(load_study(directory))
    assert _texts(document)[1] == "6 of 6 runs finished; not fully scored: flat-s0."
    figures = {part.title: part for part in document.parts if isinstance(part, Figure)}
    assert (
        len(
            figures["Distance of the Jacobian from the identity, by depth, ours"].series
        )
        == 5
    )


def test_a_jacobian_of_an_earlier_version_is_left_out_and_named(tmp_path, capsys):
    directory = study_dirs.write(tmp_path / "study")
    file = directory.run("flat-s0").analysis.scores
    scores = read_json(file)
    write_json(
        file,
        {
            name: scores[name]
            for name in scores
            if name not in ("computed_with", "checksum")
        },
    )
    document = _document(load_study(directory))
    figures = {part.title: part for part in document.parts if isinstance(part, Figure)}
    assert (
        len(
            figures["Distance of the Jacobian from the identity, by depth, ours"].series
        )
        == 5
    )
    said = capsys.readouterr().err
    assert (
        "flat-s0: its Jacobian is from an earlier version, perhaps from a faulty compiler"
        in said
    )
    assert "run `sparsecod analyze --workdir=" in said


def test_data_that_was_brought_elsewhere_is_the_same_run(tmp_path):
    directory = study_dirs.write(tmp_path / "study")
    file = directory.run("flat-s1").config
    values = read_json(file)
    values["data"]["path"] = "gs://bucket/data"
    write_json(file, values)
    assert _texts(_document(load_study(directory)))[1] == "6 of 6 runs finished."


def test_claims_without_numbers_are_not_said_to_be_tested(tmp_path):
    directory = study_dirs.write(
        tmp_path / "study", deep_s0="failed", deep_s1="failed", deep_s2="failed"
    )
    assert _texts(_document(load_study(directory)))[0].startswith(
        "Of 2 claims 0 could be tested."
    )


@pytest.mark.parametrize("scale", ["nano", "mini", "paper"])
@pytest.mark.parametrize("file", SWEEPS, ids=[file.stem for file in SWEEPS])
def test_what_the_studies_of_the_house_name_is_there(file, scale, tmp_path):
    study = load(f"{file}:{scale}")
    for name in study.published:
        assert (
            published.columns(name)
            if name.startswith("tables/")
            else published.curves(name).series
        )
    scored = study_dirs.loaded(tmp_path / "study").runs["flat", 0]
    router = {"router/gate_square_sum": [0.1, 0.2]}
    run = dataclasses.replace(scored, lines=[line | router for line in scored.lines])
    for metric in (
        *(claim.metric for claim in study.claims),
        *study.mechanism.values(),
    ):
        assert measure(run, metric) is not None, metric


def test_declares_what_was_fixed_and_what_it_can_not_say(tmp_path):
    rows = [
        tuple(row)
        for row in _tables(_document(study_dirs.loaded(tmp_path / "study")))[0].rows
    ]
    assert rows[0] == ("held fixed", "width, tokens")
    assert rows[2:] == [("seeds", "0, 1, 2"), ("not testable here", "accuracy")]


def test_the_same_stands_in_markdown_with_its_pictures(tmp_path):
    root = study_dirs.write(tmp_path / "study", numbers=_numbers(3.0)).path
    page, text = write_report(str(root)).read_text(), (root / "report.md").read_text()
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    assert [f"### {html.unescape(title)}" for title in titles] == re.findall(
        r"### .*", text
    )
    shown = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert len(shown) == page.count("<section>")
    for file in shown:
        assert (root / file).read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not on PATH")
def test_a_browser_draws_every_figure_without_a_complaint(tmp_path):
    page = write_report(
        str(
            study_dirs.write(
                tmp_path / "study", numbers=_noise, deep_s1="diverged"
            ).path
        )
    )
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--virtual-time-budget=20000",
    ]
    flags += [
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
