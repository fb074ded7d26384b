"""Images in Markdown."""

import dataclasses
import json
import os
import subprocess
import sys

from etils import epath

from sparsecod_jax.report import markdown
from sparsecod_jax.report.document import Document, Figure, Series
from tests.support import process, study_dirs


def _image(tmp_path, series):
    """The bytes of the one image of a document."""
    figure = Figure("a figure", "read it", "x", "y", [series])
    document = Document("title", [figure])
    markdown.write(document, epath.Path(tmp_path) / "report.md")
    return (tmp_path / "figures" / "a-figure.png").read_bytes()


def test_a_cloud_has_no_line_and_a_curve_has_one(tmp_path):
    """The same points in another order are the same cloud, but another curve."""
    cloud, again = (
        Series("runs", "runs", x, y, points=True)
        for x, y in (([1, 2, 3], [1, 3, 2]), ([3, 1, 2], [2, 1, 3]))
    )
    assert _image(tmp_path, cloud) == _image(tmp_path, again)
    curve, other = (
        dataclasses.replace(series, points=False) for series in (cloud, again)
    )
    assert _image(tmp_path, curve) != _image(tmp_path, other)


def test_a_report_is_drawn_though_the_font_list_of_matplotlib_is_empty(tmp_path):
    """Such a list was in the cache of a user."""
    environment = os.environ | {"MPLCONFIGDIR": str(tmp_path / "cache")}
    (tmp_path / "cache").mkdir()
    find = "import matplotlib.font_manager as f; print(f.FontManager.__version__)"
    printed = subprocess.run(
        [sys.executable, "-c", find],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    version = printed.stdout.strip()
    kept = tmp_path / "cache" / f"fontlist-v{version}.json"
    fonts = json.loads(kept.read_text())
    assert fonts["ttflist"]
    kept.write_text(json.dumps(fonts | {"ttflist": []}))
    study_dirs.write(tmp_path / "study")
    command = [sys.executable, "-m", "sparsecod_jax", "report"]
    done = subprocess.run(
        [*command, f"--workdir={tmp_path}/study"],
        cwd=process.ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not json.loads(kept.read_text())["ttflist"]  # it was read
    assert list((tmp_path / "study" / "figures").glob("*.png"))
