"""What does the report of a run, or of a folder of runs, show?

Run overview: the headline, the tables of runs and of scores, and their figures.
"""

from sparsecod_jax import config
from sparsecod_jax.config import counts
from sparsecod_jax.report import depth, figures
from sparsecod_jax.report.document import (
    Alarm,
    Document,
    Heading,
    Part,
    Table,
    Text,
    number,
)
from sparsecod_jax.report.measures import measure
from sparsecod_jax.report.runs import RunData

COLUMNS = (
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
    "MFU",
)


def document(title: str, runs: list[RunData]) -> Document:
    """The report: the runs, how they learned, and what each layer contributes."""
    parts: list[Part] = [Text(headline(runs)), run_table(runs)]
    parts += figures.overview(runs)
    scored = [run for run in runs if run.scores]
    if scored:
        parts.append(Heading("What each layer contributes"))
        parts.append(scores_table(scored))
        parts += depth.figures(runs)
    return Document(title, parts)


def headline(runs: list[RunData]) -> str:
    """How many are finished, and the names of those that are not."""
    unfinished = [run for run in runs if not run.is_finished]
    finished = len(runs) - len(unfinished)
    text = f"{finished} of {len(runs)} runs finished"
    if not unfinished:
        return f"{text}."
    names = ", ".join(f"{run.name} is {run.status}" for run in unfinished)
    return f"{text}: {names}."


def run_table(runs: list[RunData]) -> Table:
    """One row per run."""
    return Table(COLUMNS, [_row(run) for run in runs])


def scores_table(runs: list[RunData]) -> Table:
    """The numbers of the runs that were analysed."""
    columns = ["run", *(column.name for column in depth.COLUMNS)]
    rows = [[run.name, *depth.cells(run)] for run in runs]
    meanings = [f"{column.name}: {column.meaning}" for column in depth.COLUMNS]
    return Table(columns, rows, meanings)


def _row(run: RunData) -> list[str]:
    final = run.final or {}
    model = run.config["model"]
    tokens = run.lines[-1]["tokens"] if run.lines else 0
    # No measured time is a dash, not 0.
    minutes = final.get("seconds", 0) / 60 or None
    size = counts.parameters(config.from_dict(model, config.Model))
    return [
        run.name,
        _status(run),
        number(model["n_layers"], "d"),
        number(model["d_model"], "d"),
        number(size.total, ",d"),
        number(size.activated, ",d"),
        number(tokens, ",d"),
        number(final.get("loss"), ".4f"),
        number(final.get("bits_per_byte"), ".4f"),
        number(final.get("unigram_entropy"), ".4f"),
        number(measure(run, "last/variance/residual/-1")),
        number(minutes, ".1f"),
        number(final.get("mfu"), ".1%"),
    ]


def _status(run: RunData) -> str:
    """The status, which catches the eye unless the run is finished."""
    if run.is_finished:
        return run.status
    return Alarm(run.status)
