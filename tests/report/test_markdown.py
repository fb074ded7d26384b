"""Pictures in Markdown."""

import dataclasses

from etils import epath

from sparsecod_jax.report import markdown
from sparsecod_jax.report.document import Document, Figure, Series


def _picture(tmp_path, series):
    """The bytes of the one picture of a document."""
    markdown.write(Document("title", [Figure("a figure", "read it", "x", "y", [series])]), epath.Path(tmp_path) / "report.md")
    return (tmp_path / "figures" / "a-figure.png").read_bytes()


def test_a_cloud_has_no_line_and_a_curve_has_one(tmp_path):
    """Points in another order are the same cloud, and another curve."""
    cloud, again = (Series("runs", "runs", x, y, points=True) for x, y in (([1, 2, 3], [1, 3, 2]), ([3, 1, 2], [2, 1, 3])))
    assert _picture(tmp_path, cloud) == _picture(tmp_path, again)
    curve, other = (dataclasses.replace(series, points=False) for series in (cloud, again))
    assert _picture(tmp_path, curve) != _picture(tmp_path, other)
