"""What is a report made of? Plain data, whatever writes it: a page (`page.py`) or Markdown (`markdown.py`)."""

import dataclasses
from collections.abc import Sequence

COLOURS = (
    "#1b6ca8",
    "#d1495b",
    "#2e8b57",
    "#8e5ea2",
    "#c98b1b",
    "#3c3c3c",
    "#00a3a3",
    "#a0522d",
)  # of groups
FEW = 40  # points of a curve, that are marked


@dataclasses.dataclass(frozen=True)
class Heading:
    """Begins a part."""

    text: str


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph; `small` ones say how to read what follows."""

    text: str
    small: bool = False


class Alarm(str):
    """A table's cell that should catch the eye."""

    __slots__ = ()


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of text; the first column names what a row is about. `meanings` explain columns, where their names do not."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    meanings: Sequence[str] = ()
    title: str = ""


@dataclasses.dataclass(frozen=True)
class Series:
    """One curve, or a cloud of points; `group` names what shares a colour: a run, an arm or a study."""

    label: str
    group: str
    x: Sequence[float]
    y: Sequence[float | None]
    dashed: bool = False
    points: bool = False
    names: Sequence[str] = ()  # of the points


@dataclasses.dataclass(frozen=True)
class Figure:
    """A chart and one line that says how to read it."""

    title: str
    reading: str
    x_label: str
    y_label: str
    series: list[Series]
    log_y: bool = False
    log_x: bool = False


@dataclasses.dataclass(frozen=True)
class Heatmap:
    """A matrix drawn as colours, `values[row][column]`; rows and columns count from 1.

    `largest` is the magnitude of the strongest colour, one for all runs, so that they compare. A `signed` one has a colour for each sign.
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
    """A report."""

    title: str
    parts: list[Part]


def number(value: float | None, style: str | None = None) -> str:
    """A number as text, a dash where there is none."""
    if value is None:
        return "–"
    return short(value) if style is None else format(value, style)


def short(value: float, digits: int = 4) -> str:
    """A number with at least that many significant digits, up to a million without an exponent."""
    return (
        f"{value:,.0f}"
        if 10 ** (digits - 1) - 0.5 <= abs(value) < 1e6
        else f"{value:.{digits}g}"
    )
