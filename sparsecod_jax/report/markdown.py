"""How does a report look as text?

Markdown reports: a text beside a folder of images, which Matplotlib draws, so that no
browser is needed.
"""

import io
import math
import os
import re
from collections.abc import Sequence

import matplotlib
from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Image
from matplotlib.font_manager import fontManager

from sparsecod_jax.report.document import (
    FEW,
    Alarm,
    Document,
    Figure,
    Heading,
    Heatmap,
    Part,
    Series,
    Table,
    Text,
    coloured,
)
from sparsecod_jax.storage import files

FOLDER = "figures"
FONT = "DejaVu Sans"  # comes with Matplotlib
SIZE_INCHES, DOTS_PER_INCH = (8.0, 4.0), 110


def write(document: Document, path: epath.Path) -> None:
    """Writes `path`, and its images into a folder beside it."""
    folder = path.parent / FOLDER
    files.make_folder(folder)
    _add_font()
    parts = [f"# {_plain(document.title)}"]
    parts += [_part(part, folder) for part in document.parts]
    files.write(path, ("\n\n".join(parts) + "\n").encode())


def _add_font() -> None:
    """Adds the font that Matplotlib comes with, where its list of fonts lacks it.

    The list is kept in the user's cache, and may be damaged there.
    """
    if any(entry.name == FONT for entry in fontManager.ttflist):
        return
    folder = os.path.join(matplotlib.get_data_path(), "fonts", "ttf")
    fontManager.addfont(os.path.join(folder, "DejaVuSans.ttf"))


def _part(part: Part, folder: epath.Path) -> str:
    match part:
        case Heading(text):
            return f"## {_plain(text)}"
        case Text(text):
            return _plain(text)
        case Table():
            return _table(part)
        case Figure() | Heatmap():
            return _image(part, folder)


def _image(part: Figure | Heatmap, folder: epath.Path) -> str:
    """Draws a figure into the folder, and returns the text that shows it."""
    words = re.sub("[^a-z0-9]+", "-", part.title.lower()).strip("-")
    name = f"{words}.png"
    files.write(folder / name, _draw(part))
    title, reading = _plain(part.title), _plain(part.reading)
    return f"### {title}\n\n{reading}\n\n![{title}]({FOLDER}/{name})"


def _table(table: Table) -> str:
    """A table, numbers aligned on the right, below its title and what columns mean."""
    header = [_plain(column) for column in table.columns]
    alignment = ["---"] + ["--:"] * (len(header) - 1)
    body = [[_cell(cell) for cell in row] for row in table.rows]
    rows = [f"| {' | '.join(row)} |" for row in (header, alignment, *body)]

    paragraphs = ["\n".join(rows)]
    if table.meanings:
        paragraphs.insert(0, f"{_plain('; '.join(table.meanings))}.")
    if table.title:
        paragraphs.insert(0, f"### {_plain(table.title)}")
    return "\n\n".join(paragraphs)


def _cell(text: str) -> str:
    """The text of a cell, in bold where it should catch the eye."""
    if isinstance(text, Alarm):
        return f"**{_plain(text)}**"
    return _plain(text)


def _plain(text: str) -> str:
    """The text with everything escaped that means something in Markdown."""
    return re.sub(r"([\\`*_{}\[\]<>#|$])", r"\\\1", " ".join(text.split()))


def _draw(figure: Figure | Heatmap) -> bytes:
    """The bytes of a PNG."""
    image = Image(SIZE_INCHES, DOTS_PER_INCH, layout="constrained")
    axes = image.add_subplot()
    if isinstance(figure, Figure):
        _draw_curves(axes, figure)
    else:
        _draw_matrix(image, axes, figure)
    axes.set(xlabel=figure.x_label, ylabel=figure.y_label)
    drawn = io.BytesIO()
    # No version of Matplotlib in the file, so that equal images are equal files.
    image.savefig(drawn, format="png", metadata={"Software": None})
    return drawn.getvalue()


def _draw_curves(axes: Axes, figure: Figure) -> None:
    """One colour per group, within which later curves are thicker, as on the page."""
    for series, colour, nth in coloured(figure.series):
        # $ and \ would begin mathematics, and _ would hide the curve from the legend.
        label = re.sub(r"([$\\])", r"\\\1", series.label).lstrip("_")
        axes.plot(
            series.x,
            _with_nan(series.y),
            label=label,
            linestyle=_line_style(series),
            linewidth=0.7 + nth,
            marker="o" if series.points or len(series.x) < FEW else "",
            markersize=4,
            color=colour,
        )
    if figure.log_x:
        axes.set_xscale("log")
    if figure.log_y:
        axes.set_yscale("log")
    axes.spines[["top", "right"]].set_visible(False)
    if figure.series:
        beside = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
        axes.legend(fontsize="x-small", frameon=False, **beside)


def _line_style(series: Series) -> str:
    if series.points:
        return "none"
    return "--" if series.dashed else "-"


def _with_nan(values: Sequence[float | None]) -> list[float]:
    """Matplotlib leaves a gap where a value is not a number."""
    return [math.nan if value is None else value for value in values]


def _draw_matrix(image: Image, axes: Axes, heatmap: Heatmap) -> None:
    values = [_with_nan(row) for row in heatmap.values]
    rows, columns = len(values), len(values[0])
    low, colours = 0.0, "Blues"
    if heatmap.signed:
        low, colours = -heatmap.largest, "RdBu"
    shown = axes.imshow(
        values,
        cmap=colours,
        vmin=low,
        vmax=heatmap.largest,
        extent=(0.5, columns + 0.5, rows + 0.5, 0.5),
        aspect="equal" if rows == columns else "auto",
        interpolation="nearest",
    )
    image.colorbar(shown, ax=axes)
