"""What is a report made of?

Report documents: plain data, which `page.py` writes as HTML and `markdown.py` as text.
"""

import dataclasses
from collections.abc import Iterator, Sequence

# Of the groups of a figure, in order.
COLOURS = (
    "#1b6ca8",
    "#d1495b",
    "#2e8b57",
    "#8e5ea2",
    "#c98b1b",
    "#3c3c3c",
    "#00a3a3",
    "#a0522d",
)
FEW = 40  # a curve with fewer points marks each of them


@dataclasses.dataclass(frozen=True)
class Heading:
    """A heading of a section."""

    text: str


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph; a `small` one explains how to read what follows."""

    text: str
    small: bool = False


class Alarm(str):
    """A table's cell that should catch the eye."""

    __slots__ = ()


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of text; the first column names what a row is about.

    Attributes:
      meanings: explanations of columns whose names don't suffice.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    meanings: Sequence[str] = ()
    title: str = ""


@dataclasses.dataclass(frozen=True)
class Series:
    """One curve, or a cloud of points.

    Attributes:
      group: series of one group share a colour: those of a run, an arm or a study.
      y: None where there is no finite value.
      points: whether it is a cloud.
      names: of the points of a cloud.
    """

    label: str
    group: str
    x: Sequence[float]
    y: Sequence[float | None]
    dashed: bool = False
    points: bool = False
    names: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Figure:
    """A chart of curves or clouds of points.

    Attributes:
      reading: one line on how to read it.
    """

    title: str
    reading: str
    x_label: str
    y_label: str
    series: list[Series]
    log_y: bool = False
    log_x: bool = False


@dataclasses.dataclass(frozen=True)
class Heatmap:
    """A matrix drawn as colours; rows and columns count from 1.

    Attributes:
      values: by row and column, None where there is no finite value.
      largest: magnitude of the strongest colour, the same for all runs, so that they
        can be compared.
      signed: whether each sign has a colour of its own.
    """

    title: str
    reading: str
    x_label: str
    y_label: str
    values: Sequence[Sequence[float | None]]
    largest: float
    signed: bool = False


Part = Heading | Text | Table | Figure | Heatmap


@dataclasses.dataclass(frozen=True)
class Document:
    """A whole report."""

    title: str
    parts: list[Part]


def coloured(series: Sequence[Series]) -> Iterator[tuple[Series, str, int]]:
    """The look of each series in a figure.

    Yields:
      The series, the colour of its group, and its number within the group from 0 on.
    """
    groups = list(dict.fromkeys(each.group for each in series))
    drawn = dict.fromkeys(groups, 0)
    for each in series:
        colour = COLOURS[groups.index(each.group) % len(COLOURS)]
        yield each, colour, drawn[each.group]
        drawn[each.group] += 1


def number(value: float | None, style: str | None = None) -> str:
    """A number in a format style, or else short; a dash where there is none."""
    if value is None:
        return "–"
    if style is None:
        return short(value)
    return format(value, style)


def short(value: float, digits: int = 4) -> str:
    """A number with at least that many significant digits; no exponent below a million."""
    if 10 ** (digits - 1) - 0.5 <= abs(value) < 1e6:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"
