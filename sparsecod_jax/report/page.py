"""How does a report look in a browser?

HTML page: self-contained, its figures drawn by Plotly, whose code is inside the page.
"""

import base64
import gzip
import html
from typing import Any

import plotly.graph_objects as go
import plotly.offline

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

STYLE = """
body {
  font: 16px/1.5 system-ui, sans-serif; color: #222;
  max-width: 1080px; margin: 2rem auto; padding: 0 1rem;
}
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin: 2rem 0 0; }
div.figure { min-height: 420px; }
p.reading { color: #555; margin: 0 0 .3rem; }
div.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: 85%; }
th, td { padding: .25rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; min-width: 6rem; }
td.bad { color: #b00; font-weight: 600; }
@media print {
  .modebar { display: none !important; }
  section { break-inside: avoid; }
  div.table { overflow-x: visible; font-size: 70%; }
}
"""

# Shown until all figures are drawn.
WAITING = (
    '<p id="waiting">The figures need a browser from 2023 or later with JavaScript'
    " enabled; report.md has them as images.</p>"
)
# Plotly alone has 4.6 MB of code: compressed, a page is small enough to mail and commit.
UNPACK = """
const bytes = Uint8Array.from(atob("%s"), (letter) => letter.charCodeAt(0));
const unpacked = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
new Response(unpacked).text().then((code) => {
  const script = document.createElement("script");
  script.textContent = code;
  document.body.append(script);
});
"""


def render(document: Document) -> str:
    """The page as HTML text; every string of the document is escaped."""
    title = html.escape(document.title)
    body = "".join(_part(index, part) for index, part in enumerate(document.parts))
    script = UNPACK % _packed(document)
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>{STYLE}</style></head>
<body><h1>{title}</h1>{WAITING}{body}<script>{script}</script></body></html>
"""


def is_ours(content: bytes) -> bool:
    """Whether `render` made this page, in this version or an earlier one."""
    return b'<p id="waiting">' in content


def _packed(document: Document) -> str:
    """The code that draws all figures, compressed."""
    statements = [plotly.offline.get_plotlyjs()]
    for index, part in enumerate(document.parts):
        if isinstance(part, Figure):
            statements.append(_call(index, _draw(part)))
        elif isinstance(part, Heatmap):
            statements.append(_call(index, _draw_matrix(part)))
    statements.append('document.querySelector("#waiting").remove();')
    code = "\n".join(statements)
    # Without a time, so that equal reports are equal files.
    return base64.b64encode(gzip.compress(code.encode(), mtime=0)).decode()


def _call(index: int, drawn: go.Figure) -> str:
    """The statement that draws a figure into its element."""
    config = '{"displaylogo": false, "responsive": true}'
    figure = f"{{...{drawn.to_json()}, config: {config}}}"
    return f'Plotly.newPlot("{_element(index)}", {figure});'


def _element(index: int) -> str:
    """The id of the element into which a part is drawn."""
    return f"figure-{index}"


def _part(index: int, part: Part) -> str:
    match part:
        case Heading(text):
            return f"<h1>{html.escape(text)}</h1>"
        case Text(text, small):
            kind = ' class="reading"' if small else ""
            return f"<p{kind}>{html.escape(text)}</p>"
        case Table():
            return _table(part)
        case Figure() | Heatmap():
            return _section(index, part)


def _table(table: Table) -> str:
    header = [f"<th>{html.escape(column)}</th>" for column in table.columns]
    body = [[_cell(cell) for cell in row] for row in table.rows]
    rows = "".join(f"<tr>{''.join(row)}</tr>" for row in (header, *body))
    text = f'<div class="table"><table>{rows}</table></div>'
    if table.meanings:
        meanings = html.escape("; ".join(table.meanings))
        text = f'<p class="reading">{meanings}.</p>{text}'
    if table.title:
        text = f"<h2>{html.escape(table.title)}</h2>{text}"
    return text


def _cell(text: str) -> str:
    kind = ' class="bad"' if isinstance(text, Alarm) else ""
    return f"<td{kind}>{html.escape(text)}</td>"


def _section(index: int, figure: Figure | Heatmap) -> str:
    title = f"<h2>{html.escape(figure.title)}</h2>"
    reading = f'<p class="reading">{html.escape(figure.reading)}</p>'
    element = f'<div id="{_element(index)}" class="figure"></div>'
    return f"<section>{title}{reading}{element}</section>"


def _draw(figure: Figure) -> go.Figure:
    """One colour per group, within which later curves are thicker.

    A click in the legend hides a curve.
    """
    drawn = go.Figure()
    for series, colour, nth in coloured(figure.series):
        dash = "dash" if series.dashed else "solid"
        line = {"color": colour, "dash": dash, "width": 1 + nth}
        drawn.add_scatter(
            x=series.x,
            y=series.y,
            name=html.escape(series.label),
            mode=_mode(series),
            line=line,
            **_hover(series),
        )
    has_points = any(series.points for series in figure.series)
    drawn.update_layout(
        xaxis={"type": _scale(figure.log_x), "title": figure.x_label},
        yaxis={"type": _scale(figure.log_y), "title": figure.y_label},
        template="simple_white",
        height=420,
        margin={"t": 60, "r": 10},
        hovermode="closest" if has_points else "x unified",
        updatemenus=[_scale_menu(figure.log_y)],
    )
    return drawn


def _scale(log: bool) -> str:
    return "log" if log else "linear"


def _scale_menu(log: bool) -> dict[str, Any]:
    """Two buttons that choose the scale of the vertical axis."""
    buttons = [
        {"label": scale, "method": "relayout", "args": [{"yaxis.type": scale}]}
        for scale in ("linear", "log")
    ]
    return {
        "type": "buttons",
        "direction": "right",
        "x": 0,
        "xanchor": "left",
        "y": 1.2,
        "active": int(log),
        "buttons": buttons,
    }


def _mode(series: Series) -> str:
    if series.points:
        return "markers"
    return "lines+markers" if len(series.x) < FEW else "lines"


def _hover(series: Series) -> dict[str, Any]:
    """The names of points, which are larger, so that a mouse finds them."""
    if not series.points:
        return {}
    names = [html.escape(name) for name in series.names]
    return {"text": names, "marker": {"size": 10}}


def _draw_matrix(heatmap: Heatmap) -> go.Figure:
    """The first row is at the top; the cells of a square matrix are squares."""
    rows = list(range(1, len(heatmap.values) + 1))
    columns = list(range(1, len(heatmap.values[0]) + 1))
    low, colours = 0, "Blues"
    if heatmap.signed:
        low, colours = -heatmap.largest, "RdBu"
    cells = go.Heatmap(
        z=heatmap.values,
        x=columns,
        y=rows,
        zmin=low,
        zmax=heatmap.largest,
        colorscale=colours,
    )
    y_axis: dict[str, Any] = {"title": heatmap.y_label, "autorange": "reversed"}
    if len(rows) == len(columns):
        y_axis |= {"scaleanchor": "x", "constrain": "domain"}
    drawn = go.Figure(cells)
    drawn.update_layout(
        xaxis={"title": heatmap.x_label, "constrain": "domain"},
        yaxis=y_axis,
        template="simple_white",
        height=420,
        margin={"t": 20, "r": 10},
    )
    return drawn
