"""Which parts of the site are written by the code itself?

Hook of MkDocs: a line `<!-- generated: NAME -->` of a page becomes a table, so that config
fields, options and figures of scores are listed once, in the code.
"""

import argparse
import ast
import dataclasses
import inspect
import re
import typing

from sparsecod_jax.analysis.catalogue import CATALOGUE
from sparsecod_jax.config import experiment
from sparsecod_jax.shell import arguments

PLACE = re.compile(r"^<!-- generated: (.+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: object) -> str:
    """Called by MkDocs with the text of every page."""
    return PLACE.sub(lambda place: generated(place[1]), markdown)


def generated(name: str) -> str:
    """The Markdown that stands for `<!-- generated: NAME -->`.

    Raises:
      KeyError: there is no such part.
    """
    if name == "config fields":
        return config_fields()
    if name == "figures of scores":
        return figures_of_scores()
    return options_of(name.removeprefix("options of "))


def table(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown, whose cells may hold any characters."""
    lines = [header, ["---"] * len(header), *rows]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in escaped)


def options_of(subcommand: str) -> str:
    """The options of a subcommand, as its --help lists them."""
    add_options, _ = arguments.SUBCOMMANDS[subcommand]
    parser = argparse.ArgumentParser(add_help=False)
    add_options(parser)
    rows = []
    for action in parser._actions:
        if action.help is argparse.SUPPRESS:
            continue
        meaning = (action.help or "") % {"default": action.default}
        needed = "yes" if action.required else ""
        rows.append([f"`{action.option_strings[0]}`", needed, meaning])
    return table(["option", "required", "meaning"], rows)


def config_fields() -> str:
    """A section with a table for each dataclass of an `Experiment`."""
    sections = typing.get_type_hints(experiment.Experiment)
    parts = [_fields_of(experiment.Experiment, "", "The run itself")]
    for name, section in sections.items():
        if inspect.isclass(section) and dataclasses.is_dataclass(section):
            parts.append(_fields_of(section, f"{name}.", f"`{name}`"))
    return "\n\n".join(parts)


def _fields_of(section: type, prefix: str, title: str) -> str:
    comments = _comments(section)
    hints = typing.get_type_hints(section)
    rows = []
    for field in dataclasses.fields(section):
        if dataclasses.is_dataclass(field.default):
            continue  # a section, which has a table of its own
        kind = _type(hints[field.name])
        meaning = comments[field.name]
        rows.append([f"`{prefix}{field.name}`", kind, f"`{field.default!r}`", meaning])
    text = inspect.getdoc(section) or ""
    header = ["field", "type", "default", "meaning"]
    return f"## {title}\n\n{text}\n\n{table(header, rows)}"


def _comments(section: type) -> dict[str, str]:
    """The comment beside each field, or in the lines above it."""
    source = inspect.getsource(section)
    lines = source.splitlines()
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    comments = {}
    for node in body.body:
        if not isinstance(node, ast.AnnAssign):
            continue
        _, _, beside = lines[(node.end_lineno or node.lineno) - 1].partition("  # ")
        above = []
        number = node.lineno - 2
        while lines[number].strip().startswith("# "):
            above.insert(0, lines[number].strip()[2:])
            number -= 1
        comments[ast.unparse(node.target)] = beside or " ".join(above)
    return comments


def _type(hint: object) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(f"`{choice}`" for choice in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return "names"
    return getattr(hint, "__name__", str(hint))


def figures_of_scores() -> str:
    """The figures that a report draws of each score."""
    rows = []
    for name, score in CATALOGUE.items():
        for curve in score.curves:
            rows.append([f"`{name}`", curve.title, curve.unit, curve.reading])
        for matrix in score.matrices:
            axes = f"{matrix.y_label} by {matrix.x_label}"
            rows.append([f"`{name}`", matrix.title, axes, matrix.reading])
    return table(["score", "figure", "unit or axes", "how to read it"], rows)
