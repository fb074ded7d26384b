"""How does a report look as text? Markdown beside a folder of PNGs, drawn by Matplotlib, so that no browser is needed."""

import io
import os
import re

import matplotlib
from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.font_manager import fontManager

from sparsecod_jax.report.document import (
    COLOURS,
    FEW,
    Alarm,
    Document,
    Figure,
    Heading,
    Heatmap,
    Part,
    Table,
    Text,
)
from sparsecod_jax.storage import files

FOLDER = "figures"
FONT = "DejaVu Sans"  # comes with Matplotlib
INCHES, DOTS = (8.0, 4.0), 110  # of a picture, and dots an inch


def write(document: Document, path: epath.Path) -> None:
    """Writes `path` and the pictures that it shows, in a folder beside it."""
    folder = path.parent / FOLDER
    files.make_folder(folder)
    _have_font()
    parts = [
        f"# {_plain(document.title)}",
        *(_part(part, folder) for part in document.parts),
    ]
    files.write(path, ("\n\n".join(parts) + "\n").encode())


def _have_font() -> None:
    """Matplotlib keeps a list of all fonts in the user's cache, which may have lost its own."""
    if all(entry.name != FONT for entry in fontManager.ttflist):
        fontManager.addfont(
            os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
        )


def _part(part: Part, folder: epath.Path) -> str:
    match part:
        case Heading(text):
            return f"## {_plain(text)}"
        case Text(text):
            return _plain(text)
        case Table():
            return _table(part)
        case Figure() | Heatmap():
            name = f"{re.sub('[^a-z0-9]+', '-', part.title.lower()).strip('-')}.png"
            files.write(folder / name, _draw(part))
            return f"### {_plain(part.title)}\n\n{_plain(part.reading)}\n\n![{_plain(part.title)}]({FOLDER}/{name})"


def _table(table: Table) -> str:
    title = f"### {_plain(table.title)}\n\n" if table.title else ""
    meanings = f"{_plain('; '.join(table.meanings))}.\n\n" if table.meanings else ""
    rows = [
        table.columns,
        ["---", *("--:" for _ in table.columns[1:])],
        *([_cell(cell) for cell in row] for row in table.rows),
    ]
    header, rule, *body = rows
    return (
        title
        + meanings
        + "\n".join(
            f"| {' | '.join(row)} |"
            for row in ([_plain(column) for column in header], rule, *body)
        )
    )


def _cell(text: str) -> str:
    return f"**{_plain(text)}**" if isinstance(text, Alarm) else _plain(text)


def _plain(text: str) -> str:
    """Text that Markdown takes as it is."""
    return re.sub(r"([\\`*_{}\[\]<>#|$])", r"\\\1", " ".join(text.split()))


def _draw(figure: Figure | Heatmap) -> bytes:
    picture = Picture(INCHES, DOTS, layout="constrained")
    axes = picture.add_subplot()
    if isinstance(figure, Figure):
        _draw_curves(axes, figure)
    else:
        _draw_matrix(picture, axes, figure)
    axes.set(xlabel=figure.x_label, ylabel=figure.y_label)
    drawn = io.BytesIO()
    picture.savefig(drawn, format="png", metadata={"Software": None})
    return drawn.getvalue()


def _draw_curves(axes: Axes, figure: Figure) -> None:
    """As on the page: a group has a colour, its curves differ in strength."""
    groups = list(dict.fromkeys(series.group for series in figure.series))
    seen: dict[str, int] = {}
    for series in figure.series:
        nth = seen[series.group] = seen.get(series.group, -1) + 1
        colour = COLOURS[groups.index(series.group) % len(COLOURS)]
        values = [float("nan") if value is None else value for value in series.y]
        style = "none" if series.points else "--" if series.dashed else "-"
        marker = "o" if series.points or len(series.x) < FEW else ""
        label = re.sub(r"([$\\])", r"\\\1", series.label)  # which begin mathematics
        look = {
            "linestyle": style,
            "linewidth": 0.7 + nth,
            "marker": marker,
            "markersize": 4,
            "color": colour,
        }
        axes.plot(series.x, values, label=label.lstrip("_"), **look)
    if figure.log_x:
        axes.set_xscale("log")
    if figure.log_y:
        axes.set_yscale("log")
    axes.spines[["top", "right"]].set_visible(False)
    if figure.series:
        axes.legend(
            fontsize="x-small",
            frameon=False,
            loc="center left",
            bbox_to_anchor=(1, 0.5),
        )


def _draw_matrix(picture: Picture, axes: Axes, heatmap: Heatmap) -> None:
    values = [
        [float("nan") if value is None else value for value in row]
        for row in heatmap.values
    ]
    rows, columns = len(values), len(values[0])
    low = -heatmap.largest if heatmap.signed else 0
    colours = "RdBu" if heatmap.signed else "Blues"
    extent = (0.5, columns + 0.5, rows + 0.5, 0.5)
    shape = "equal" if rows == columns else "auto"
    shown = axes.imshow(
        values,
        cmap=colours,
        vmin=low,
        vmax=heatmap.largest,
        extent=extent,
        aspect=shape,
        interpolation="nearest",
    )
    picture.colorbar(shown, ax=axes)
