"""Pictures in Markdown."""

import dataclasses
import json
import os
import subprocess
import sys

from etils import epath

from sparsecod_jax.report import markdown
from sparsecod_jax.report.document import Document, Figure, Series
from tests.support import process, study_dirs


def _picture(tmp_path, series):
    """The bytes of the one picture of a document."""
    markdown.write(
        Document("title", [Figure("a figure", "read it", "x", "y", [series])]),
        epath.Path(tmp_path) / "report.md",
    )
    return (tmp_path / "figures" / "a-figure.png").read_bytes()


def test_a_cloud_has_no_line_and_a_curve_has_one(tmp_path):
    """Points in another order are the same cloud, and another curve."""
    cloud, again = (
        Series("runs", "runs", x, y, points=True)
        for x, y in (([1, 2, 3], [1, 3, 2]), ([3, 1, 2], [2, 1, 3]))
    )
    assert _picture(tmp_path, cloud) == _picture(tmp_path, again)
    curve, other = (
        dataclasses.replace(series, points=False) for series in (cloud, again)
    )
    assert _picture(tmp_path, curve) != _picture(tmp_path, other)


def test_a_list_of_fonts_that_is_empty_keeps_no_report_from_being_drawn(tmp_path):
    """As was seen in the cache of a user."""
    surroundings = os.environ | {"MPLCONFIGDIR": str(tmp_path / "cache")}
    (tmp_path / "cache").mkdir()
    find = "import matplotlib.font_manager as f; print(f.FontManager.__version__)"
    words = [sys.executable, "-c", find]
    version = subprocess.run(
        words, env=surroundings, capture_output=True, text=True, check=True
    ).stdout.strip()
    kept = tmp_path / "cache" / f"fontlist-v{version}.json"
    fonts = json.loads(kept.read_text())
    assert fonts["ttflist"]
    kept.write_text(json.dumps(fonts | {"ttflist": []}))
    study_dirs.write(tmp_path / "study")
    words = [
        sys.executable,
        "-m",
        "sparsecod_jax",
        "report",
        f"--workdir={tmp_path}/study",
    ]
    done = subprocess.run(
        words,
        cwd=process.ROOT,
        env=surroundings,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not json.loads(kept.read_text())["ttflist"]  # it was read
    assert list((tmp_path / "study" / "figures").glob("*.png"))
