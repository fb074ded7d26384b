"""How does the report look? One self-contained HTML page: tables, and figures drawn by Plotly, whose code is inside the page."""

import html

import plotly.graph_objects as go
import plotly.io
import plotly.offline
from etils import epath

from sparsecod_jax import config, counts, files
from sparsecod_jax.files import read_json
from sparsecod_jax.report import depth, figures
from sparsecod_jax.report.figures import Figure, Heatmap, RunData
from sparsecod_jax.rundir import RunDir, find_runs

COLOURS = ("#1b6ca8", "#d1495b", "#2e8b57", "#8e5ea2", "#c98b1b", "#3c3c3c", "#00a3a3", "#a0522d")

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin: 2rem 0 0; }
p.reading { color: #555; margin: 0 0 .3rem; }
table { border-collapse: collapse; } th, td { padding: .25rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; } td.bad { color: #b00; font-weight: 600; }
@media print { .modebar { display: none !important; } section { break-inside: avoid; } }
"""


def write_report(workdir: str) -> epath.Path:
    """Writes report.html for a run or a folder of runs and returns its path.

    Raises:
      ConfigError: there is no run.
    """
    root = files.absolute(workdir)
    runs = [load_run(run) for run in find_runs(root)]
    path = RunDir(root).report
    files.write(path, render(root.name, runs).encode())
    return path


def load_run(run: RunDir) -> RunData:
    """Reads what a run has written so far."""
    return RunData(
        name=run.path.name,
        status=run.read_status(),
        config=config.to_dict(config.from_dict(read_json(run.config))),
        lines=run.read_metrics(),
        final=read_json(run.final) if run.final.exists() else None,
        scores=read_json(run.analysis.scores) if run.analysis.scores.exists() else None,
    )


def render(title: str, runs: list[RunData]) -> str:
    """The page as HTML text; every string from a run directory is escaped."""
    training = figures.overview(runs)
    contribution = depth.figures(runs)
    drawn = [_section(number, figure) for number, figure in enumerate([*training, *contribution])]
    sections = "".join(drawn[: len(training)]) + _scores(runs) + "".join(drawn[len(training) :])
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{html.escape(title)}</title><style>{STYLE}</style><script>{plotly.offline.get_plotlyjs()}</script></head>
<body><h1>{html.escape(title)}</h1>{_headline(runs)}{_table(runs)}{sections}</body></html>
"""


def _headline(runs: list[RunData]) -> str:
    unfinished = [f"{run.name} is {run.status}" for run in runs if run.status != "finished"]
    text = f"{len(runs) - len(unfinished)} of {len(runs)} runs finished" + (": " + ", ".join(unfinished) if unfinished else "")
    return f"<p>{html.escape(text)}.</p>"


def _table(runs: list[RunData]) -> str:
    columns = (
        "run",
        "status",
        "blocks",
        "width",
        "parameters",
        "activated",
        "tokens",
        "held-out loss",
        "bits per byte",
        "unigram entropy",
        "last-block variance",
        "minutes",
    )
    header = "".join(f"<th>{column}</th>" for column in columns)
    return f"<table><tr>{header}</tr>{''.join(_row(run) for run in runs)}</table>"


def _row(run: RunData) -> str:
    final, model = run.final or {}, run.config["model"]
    variance = run.lines[-1]["variance/residual"][-1] if run.lines else None
    tokens = run.lines[-1]["tokens"] if run.lines else 0
    size = counts.parameters(config.from_dict(model, config.Model))
    cells = [
        _number(model["n_layers"], "d"),
        _number(model["d_model"], "d"),
        _number(size.total, ",d"),
        _number(size.activated, ",d"),
        _number(tokens, ",d"),
        _number(final.get("loss"), ".4f"),
        _number(final.get("bits_per_byte"), ".4f"),
        _number(final.get("unigram_entropy"), ".4f"),
        _number(variance, ".4g"),
        _number(final.get("seconds", 0) / 60 or None, ".1f"),
    ]
    mark = "" if run.status == "finished" else ' class="bad"'
    numbers = "".join(f"<td>{cell}</td>" for cell in cells)
    return f"<tr><td>{html.escape(run.name)}</td><td{mark}>{html.escape(run.status)}</td>{numbers}</tr>"


def _scores(runs: list[RunData]) -> str:
    """The headline numbers of the runs that were analysed; nothing when none was."""
    scored = [run for run in runs if run.scores]
    if not scored:
        return ""
    header = "".join(f'<th title="{html.escape(meaning)}">{html.escape(name)}</th>' for name, (_, _, meaning) in depth.HEADLINES.items())
    rows = "".join(
        f"<tr><td>{html.escape(run.name)}</td>{''.join(f'<td>{html.escape(cell)}</td>' for cell in depth.headlines(run))}</tr>"
        for run in scored
    )
    meanings = "; ".join(f"{name}: {meaning}" for name, (_, _, meaning) in depth.HEADLINES.items())
    return f"""<h1>What each layer contributes</h1><p class="reading">{html.escape(meanings)}.</p>
<table><tr><th>run</th>{header}</tr>{rows}</table>"""


def _number(value: float | None, style: str) -> str:
    return "–" if value is None else format(value, style)


def _section(number: int, figure: Figure | Heatmap) -> str:
    picture = _draw(figure) if isinstance(figure, Figure) else _draw_matrix(figure)
    drawn = plotly.io.to_html(picture, full_html=False, include_plotlyjs=False, div_id=f"figure-{number}", config={"displaylogo": False})
    return f'<section><h2>{html.escape(figure.title)}</h2><p class="reading">{html.escape(figure.reading)}</p>{drawn}</section>'


def _draw(figure: Figure) -> go.Figure:
    """Runs have a colour each; their curves differ in dash and strength, and a legend click hides one."""
    groups = list(dict.fromkeys(series.group for series in figure.series))
    seen: dict[str, int] = {}
    drawn = go.Figure()
    for series in figure.series:
        nth = seen[series.group] = seen.get(series.group, -1) + 1
        line = {"color": COLOURS[groups.index(series.group) % len(COLOURS)], "dash": "dash" if series.dashed else "solid", "width": 1 + nth}
        drawn.add_scatter(
            x=series.x, y=series.y, name=html.escape(series.label), mode="lines+markers" if len(series.x) < 40 else "lines", line=line
        )
    scale = {"type": "log" if figure.log_y else "linear", "title": figure.y_label}
    menu = {
        "type": "buttons",
        "direction": "right",
        "x": 0,
        "xanchor": "left",
        "y": 1.2,
        "active": int(figure.log_y),
        "buttons": [{"label": kind, "method": "relayout", "args": [{"yaxis.type": kind}]} for kind in ("linear", "log")],
    }
    layout = {"template": "simple_white", "height": 420, "margin": {"t": 60, "r": 10}, "hovermode": "x unified", "updatemenus": [menu]}
    drawn.update_layout(xaxis={"title": figure.x_label}, yaxis=scale, **layout)
    return drawn


def _draw_matrix(heatmap: Heatmap) -> go.Figure:
    """Read from the top left, as a matrix is; squares where it is square."""
    rows, columns = (list(range(1, size + 1)) for size in (len(heatmap.values), len(heatmap.values[0])))
    colours = {"colorscale": "RdBu", "zmin": -heatmap.largest} if heatmap.signed else {"colorscale": "Blues", "zmin": 0}
    drawn = go.Figure(go.Heatmap(z=heatmap.values, x=columns, y=rows, zmax=heatmap.largest, **colours))
    square = {"scaleanchor": "x", "constrain": "domain"} if len(rows) == len(columns) else {}
    layout = {"template": "simple_white", "height": 420, "margin": {"t": 20, "r": 10}}
    drawn.update_layout(
        xaxis={"title": heatmap.x_label, "constrain": "domain"},
        yaxis={"title": heatmap.y_label, "autorange": "reversed", **square},
        **layout,
    )
    return drawn
