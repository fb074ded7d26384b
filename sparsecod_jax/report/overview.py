"""What does the report of a run, or of a folder of runs, say?"""

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
    """The runs, how they learned, and what each layer contributes."""
    parts: list[Part] = [Text(headline(runs)), run_table(runs), *figures.overview(runs)]
    if scored := [run for run in runs if run.scores]:
        parts += [
            Heading("What each layer contributes"),
            scores_table(scored),
            *depth.figures(runs),
        ]
    return Document(title, parts)


def headline(runs: list[RunData]) -> str:
    """How many are finished, and the names of those that are not."""
    unfinished = [
        f"{run.name} is {run.status}" for run in runs if run.status != "finished"
    ]
    return (
        f"{len(runs) - len(unfinished)} of {len(runs)} runs finished"
        + (": " + ", ".join(unfinished) if unfinished else "")
        + "."
    )


def run_table(runs: list[RunData]) -> Table:
    """One row a run."""
    return Table(COLUMNS, [_row(run) for run in runs])


def scores_table(runs: list[RunData]) -> Table:
    """The numbers of the runs that were analysed."""
    columns = ["run", *(column.name for column in depth.COLUMNS)]
    rows = [[run.name, *depth.cells(run)] for run in runs]
    meanings = [f"{column.name}: {column.meaning}" for column in depth.COLUMNS]
    return Table(columns, rows, meanings)


def _row(run: RunData) -> list[str]:
    final, model = run.final or {}, run.config["model"]
    size = counts.parameters(config.from_dict(model, config.Model))
    return [
        run.name,
        run.status if run.status == "finished" else Alarm(run.status),
        number(model["n_layers"], "d"),
        number(model["d_model"], "d"),
        number(size.total, ",d"),
        number(size.activated, ",d"),
        number(run.lines[-1]["tokens"] if run.lines else 0, ",d"),
        number(final.get("loss"), ".4f"),
        number(final.get("bits_per_byte"), ".4f"),
        number(final.get("unigram_entropy"), ".4f"),
        number(measure(run, "last/variance/residual/-1")),
        number(final.get("seconds", 0) / 60 or None, ".1f"),
        number(final.get("mfu"), ".1%"),
    ]
