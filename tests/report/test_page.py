"""The report page of runs in every state, read as a browser reads it."""

import base64
import gzip
import html
import html.parser
import re
import shutil
import subprocess

import numpy as np
import pytest
from etils import epath

from sparsecod_jax import config
from sparsecod_jax.report import figures
from sparsecod_jax.report.writing import write_report
from sparsecod_jax.storage.attempts import Attempt
from sparsecod_jax.storage.records import read_record, write_json
from sparsecod_jax.storage.rundir import RunDir
from sparsecod_jax.train.writers import Writers, plain
from tests.support import tiny_configs

LOADING = {"src", "href", "srcset", "data", "action"}  # attributes that load
HOSTILE = "<script>alert(1)<b>&"
CHROMIUM = shutil.which("chromium")


def _line(step, layers, **changes):
    profile = np.linspace(0.5, 3, layers) + 0.1 * step
    metrics = {
        "step": step,
        "tokens": 256 * step,
        "loss": np.float32(5 / step),
        "variance/residual": profile,
        "variance/attention": profile / 10,
        "variance/ffn": profile / 5,
        "cosine/update": -profile / 100,
    }
    return plain(metrics | changes)


def _run(path, status, *, lines=(), final=None, layers=3, **model):
    """A run directory as `train` leaves it."""
    path.mkdir(parents=True)
    run = RunDir(path)
    experiment = tiny_configs.experiment(model={"n_layers": layers, **model})
    write_json(run.config, config.to_dict(experiment))
    if status:
        run.set_status(status)
    if lines:
        writers = Writers(Attempt(run, 0))
        writers.begin(0)
        for line in lines:
            writers.write(line, tensorboard=False)
        writers.close()
    if final:
        write_json(run.final, final)


def _finished(path, layers, loss):
    lines = [_line(step, layers) for step in range(1, 7)]
    lines[-1]["evaluation/loss"] = loss + 0.1
    final = {
        "loss": loss,
        "bits_per_byte": 2.25,
        "unigram_entropy": 5.5,
        "steps": 6,
        "seconds": 90.0,
        "mfu": None,
    }
    _run(path, "finished", lines=lines, final=final, layers=layers)


@pytest.fixture
def study(tmp_path):
    """Two finished runs."""
    root = epath.Path(tmp_path) / "study"
    _finished(root / "depth_04", 4, 3.25)
    _finished(root / "depth_16", 16, 3.125)
    return root


class _Page(html.parser.HTMLParser):
    """The tags, their attributes and the text of a page, apart from scripts and styles."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.text, self.rows, self._open = [], [], [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._open.append(tag)
        if tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag):
        while self._open.pop() != tag:
            pass

    def handle_data(self, data):
        if self._open and self._open[-1] not in ("script", "style"):
            self.text.append(data)
        if self._open and self._open[-1] in ("td", "th"):
            self.rows[-1].append(data)

    @property
    def headline(self):
        return next(text for text in self.text if "runs finished" in text)


def test_names_both_runs_with_their_numbers(study):
    page = _Page(write_report(str(study)))
    assert page.headline == "2 of 2 runs finished."
    header, *rows = page.rows
    by_run = {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in rows}
    assert set(by_run) == {"depth_04", "depth_16"}
    assert by_run["depth_16"] == {
        "status": "finished",
        "blocks": "16",
        "width": "32",
        "parameters": "143,392",
        "activated": "143,392",
        "tokens": "1,536",
        "held-out loss": "3.1250",
        "bits per byte": "2.2500",
        "unigram entropy": "5.5000",
        "last-block variance": "3.6",
        "minutes": "1.5",
        "MFU": "–",
    }
    assert by_run["depth_04"]["held-out loss"] == "3.2500"


def test_a_mixture_of_experts_shows_the_health_of_its_router(study):
    router = {f"router/{name}": np.full(3, 0.5) for name in figures.ROUTER}
    lines = [_line(1, 3, **router), _line(2, 3, **router)]
    _run(study / "moe", "running", lines=lines, n_experts=4, top_k=2)
    page = _Page(write_report(str(study)))
    for title, _, _ in figures.ROUTER.values():
        assert f"{title} against layer" in page.text
    row = next(row for row in page.rows if row[0] == "moe")
    cells = dict(zip(page.rows[0], row, strict=True))
    total = int(cells["parameters"].replace(",", ""))
    activated = int(cells["activated"].replace(",", ""))
    assert total - activated == 3 * 2 * 3 * 32 * 48
    dense = _Page(write_report(str(study / "depth_04")))
    assert "Load entropy against layer" not in dense.text


def test_a_config_older_than_mixtures_of_experts_is_read(study):
    run = RunDir(study / "depth_04")
    values = read_record(run.config)
    del values["model"]["n_experts"]
    write_json(run.config, values)
    assert _Page(write_report(str(study))).headline == "2 of 2 runs finished."


def test_one_run_has_its_report_inside(study):
    path = write_report(str(study / "depth_04"))
    assert path == study / "depth_04" / "report.html"
    page = _Page(path)
    assert page.headline == "1 of 1 runs finished."
    assert [row[0] for row in page.rows] == ["run", "depth_04"]


def test_the_page_loads_nothing_from_elsewhere(study):
    page = _Page(write_report(str(study)))
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "img", "object", "embed", "base")
        assert not LOADING & set(attributes), (tag, attributes)
    text = (study / "report.html").read_text()
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert style
    assert not re.search(r"url\(|@import", style[1])


def _unpacked(path):
    """The code that the page runs."""
    packed = re.search(r'atob\("([^"]+)"\)', path.read_text())
    assert packed
    return gzip.decompress(base64.b64decode(packed[1])).decode()


def test_every_figure_has_its_element_and_the_code_that_draws_it(study):
    path = write_report(str(study))
    elements = re.findall(r'<div id="(figure-\d+)"', path.read_text())
    assert len(elements) > 3
    code = _unpacked(path)
    call = r'^Plotly.newPlot\("(figure-\d+)", {'
    assert re.findall(call, code, re.MULTILINE) == elements
    assert code.startswith("/**")  # Plotly's own


def test_a_hostile_run_name_is_text(tmp_path):
    root = epath.Path(tmp_path) / HOSTILE
    _finished(root / HOSTILE, 3, 3.0)
    _finished(root / "plain", 3, 3.0)
    _run(root / f"{HOSTILE}2", "running")
    path = write_report(str(root))
    page = _Page(path)
    assert [row[0] for row in page.rows] == ["run", HOSTILE, f"{HOSTILE}2", "plain"]
    assert HOSTILE in "".join(page.text)
    assert f"{HOSTILE}2 is running" in page.headline
    assert "<script>alert" not in path.read_text()
    assert "<script>alert" not in _unpacked(path)


@pytest.mark.parametrize("status", ["running", "preempted", "diverged", "failed", None])
def test_the_headline_names_a_run_that_is_not_finished(study, status):
    _run(study / "depth_99", status, lines=[_line(1, 3)])
    page = _Page(write_report(str(study)))
    assert page.headline == f"2 of 3 runs finished: depth_99 is {status or 'pending'}."
    marked = [
        attributes
        for tag, attributes in page.tags
        if tag == "td" and attributes.get("class") == "bad"
    ]
    assert len(marked) == 1


def test_a_run_without_any_line_and_values_that_are_not_finite(tmp_path):
    root = epath.Path(tmp_path)
    _run(root / "fresh", "running")
    infinite = {"variance/residual": np.array([1.0, 2.0, np.inf])}
    lines = [_line(1, 3), _line(2, 3, loss=np.nan, **infinite)]
    assert lines[1]["variance/residual"] == [1.0, 2.0, None]
    _run(root / "wild", "diverged", lines=lines)
    page = _Page(write_report(str(root)))
    assert page.headline == "0 of 2 runs finished: fresh is running, wild is diverged."
    header, fresh, wild = page.rows
    assert dict(zip(header, fresh, strict=True))["tokens"] == "0"
    assert dict(zip(header, wild, strict=True))["last-block variance"] == "–"
    assert fresh.count("–") == wild.count("–") == 6


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not on PATH")
def test_a_browser_draws_every_figure(tmp_path):
    """All states on one page, so that no series, empty or with gaps, stops the drawing."""
    root = epath.Path(tmp_path) / "study"
    _finished(root / HOSTILE, 4, 3.25)
    _run(root / "fresh", "running")
    missing = {"variance/residual": np.full(3, np.nan)}
    lines = [_line(1, 3), _line(2, 3, loss=np.inf, **missing)]
    _run(root / "wild", "diverged", lines=lines)
    page = write_report(str(root))
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--virtual-time-budget=8000",
    ]
    flags += [f"--user-data-dir={tmp_path}/profile", "--dump-dom"]
    done = subprocess.run(
        [str(CHROMIUM), *flags, f"file://{page}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    drawn = done.stdout
    sections = re.findall(r"<section>.*?</section>", drawn, re.DOTALL)
    assert len(sections) == page.read_text().count("<section>") > 3
    for section in sections:
        title = re.search(r"<h2>(.*?)</h2>", section)
        assert 'class="main-svg"' in section, title
        assert 'class="xtick"' in section, title
    legends = re.findall(r'class="legendtext"[^>]*>(.*?)</text>', drawn)
    # As text, though Plotly would show <b> in bold.
    assert f"{HOSTILE}, block 4 of 4" in map(html.unescape, legends)
    assert "<script>alert" not in drawn
