"""How does a report look in a browser? One self-contained HTML page, its figures drawn by Plotly, whose code is inside the page."""

import base64
import gzip
import html

import plotly.graph_objects as go
import plotly.offline

from sparsecod_jax.report.document import (
    COLOURS,
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
)

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin: 2rem 0 0; }
div.figure { min-height: 420px; } p.reading { color: #555; margin: 0 0 .3rem; } div.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: 85%; } th, td { padding: .25rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; min-width: 6rem; } td.bad { color: #b00; font-weight: 600; }
@media print { .modebar { display: none !important; } section { break-inside: avoid; } div.table { overflow-x: visible; font-size: 70%; } }
"""

# Stands there until all figures are drawn.
WAITING = '<p id="waiting">The figures need a browser from 2023 or later with JavaScript enabled; report.md has them as images.</p>'
# Plotly alone has 4.6 MB of code: packed, a page is small enough to mail and to commit.
UNPACK = """
const bytes = Uint8Array.from(atob("%s"), (letter) => letter.charCodeAt(0));
new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text().then((code) => {
  const script = document.createElement("script");
  script.textContent = code;
  document.body.append(script);
});
"""


def render(document: Document) -> str:
    """The page as HTML text; every string of the document is escaped."""
    title = html.escape(document.title)
    body = "".join(_part(place, part) for place, part in enumerate(document.parts))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>{STYLE}</style></head>
<body><h1>{title}</h1>{WAITING}{body}<script>{UNPACK % _packed(document)}</script></body></html>
"""


def is_ours(content: bytes) -> bool:
    """Whether `render` made this page, here or in an earlier version."""
    return b'<p id="waiting">' in content


def _packed(document: Document) -> str:
    """The code that draws all figures, compressed."""
    pictures = {
        place: _draw(part) if isinstance(part, Figure) else _draw_matrix(part)
        for place, part in enumerate(document.parts)
        if isinstance(part, Figure | Heatmap)
    }
    config = '{"displaylogo": false, "responsive": true}'
    calls = (
        f'Plotly.newPlot("{_name(place)}", {{...{picture.to_json()}, config: {config}}});'
        for place, picture in pictures.items()
    )
    code = "\n".join(
        (
            plotly.offline.get_plotlyjs(),
            *calls,
            'document.querySelector("#waiting").remove();',
        )
    )
    return base64.b64encode(gzip.compress(code.encode(), mtime=0)).decode()


def _name(place: int) -> str:
    """Of the element in which a figure is drawn."""
    return f"figure-{place}"


def _part(place: int, part: Part) -> str:
    match part:
        case Heading(text):
            return f"<h1>{html.escape(text)}</h1>"
        case Text(text, small):
            kind = ' class="reading"' if small else ""
            return f"<p{kind}>{html.escape(text)}</p>"
        case Table():
            return _table(part)
        case Figure() | Heatmap():
            return _section(place, part)


def _table(table: Table) -> str:
    header = "".join(f"<th>{html.escape(column)}</th>" for column in table.columns)
    rows = "".join(
        f"<tr>{''.join(_cell(cell) for cell in row)}</tr>" for row in table.rows
    )
    meanings = (
        f'<p class="reading">{html.escape("; ".join(table.meanings))}.</p>'
        if table.meanings
        else ""
    )
    title = f"<h2>{html.escape(table.title)}</h2>" if table.title else ""
    return f'{title}{meanings}<div class="table"><table><tr>{header}</tr>{rows}</table></div>'


def _cell(text: str) -> str:
    kind = ' class="bad"' if isinstance(text, Alarm) else ""
    return f"<td{kind}>{html.escape(text)}</td>"


def _section(place: int, figure: Figure | Heatmap) -> str:
    title, reading = html.escape(figure.title), html.escape(figure.reading)
    return f'<section><h2>{title}</h2><p class="reading">{reading}</p><div id="{_name(place)}" class="figure"></div></section>'


def _draw(figure: Figure) -> go.Figure:
    """Groups have a colour each; their curves differ in dash and strength, and a legend click hides one."""
    groups = list(dict.fromkeys(series.group for series in figure.series))
    seen: dict[str, int] = {}
    drawn = go.Figure()
    for series in figure.series:
        nth = seen[series.group] = seen.get(series.group, -1) + 1
        colour = COLOURS[groups.index(series.group) % len(COLOURS)]
        line = {
            "color": colour,
            "dash": "dash" if series.dashed else "solid",
            "width": 1 + nth,
        }
        drawn.add_scatter(
            x=series.x,
            y=series.y,
            name=html.escape(series.label),
            mode=_mode(series),
            line=line,
            **_hover(series),
        )
    across = {"type": "log" if figure.log_x else "linear", "title": figure.x_label}
    upward = {"type": "log" if figure.log_y else "linear", "title": figure.y_label}
    menu = {
        "type": "buttons",
        "direction": "right",
        "x": 0,
        "xanchor": "left",
        "y": 1.2,
        "active": int(figure.log_y),
        "buttons": [
            {"label": kind, "method": "relayout", "args": [{"yaxis.type": kind}]}
            for kind in ("linear", "log")
        ],
    }
    hover = "closest" if any(series.points for series in figure.series) else "x unified"
    layout = {
        "template": "simple_white",
        "height": 420,
        "margin": {"t": 60, "r": 10},
        "hovermode": hover,
        "updatemenus": [menu],
    }
    drawn.update_layout(xaxis=across, yaxis=upward, **layout)
    return drawn


def _mode(series: Series) -> str:
    if series.points:
        return "markers"
    return "lines+markers" if len(series.x) < FEW else "lines"


def _hover(series: Series) -> dict:
    return (
        {"text": [html.escape(name) for name in series.names], "marker": {"size": 10}}
        if series.points
        else {}
    )


def _draw_matrix(heatmap: Heatmap) -> go.Figure:
    """Read from the top left, as a matrix is; squares where it is square."""
    rows, columns = (
        list(range(1, size + 1))
        for size in (len(heatmap.values), len(heatmap.values[0]))
    )
    colours = (
        {"colorscale": "RdBu", "zmin": -heatmap.largest}
        if heatmap.signed
        else {"colorscale": "Blues", "zmin": 0}
    )
    drawn = go.Figure(
        go.Heatmap(z=heatmap.values, x=columns, y=rows, zmax=heatmap.largest, **colours)
    )
    square = (
        {"scaleanchor": "x", "constrain": "domain"} if len(rows) == len(columns) else {}
    )
    layout = {"template": "simple_white", "height": 420, "margin": {"t": 20, "r": 10}}
    drawn.update_layout(
        xaxis={"title": heatmap.x_label, "constrain": "domain"},
        yaxis={"title": heatmap.y_label, "autorange": "reversed", **square},
        **layout,
    )
    return drawn
