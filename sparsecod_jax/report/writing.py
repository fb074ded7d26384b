"""Which report does a folder get?

Writing reports: the subcommand `report` for a run, a study, or a folder of them.
"""

import dataclasses

from etils import epath

from sparsecod_jax.config.python_file import gist
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.report import markdown, overview, page, studies, study
from sparsecod_jax.report.document import Document, Heading, Part, Text
from sparsecod_jax.report.gathering import Gathered, gather
from sparsecod_jax.report.runs import RunData
from sparsecod_jax.report.study_data import StudyData
from sparsecod_jax.shell.shown import shown
from sparsecod_jax.storage import files
from sparsecod_jax.storage.rundir import RunDir
from sparsecod_jax.study.study_dir import StudyDir


def write_report(workdir: str, out: str | None = None) -> epath.Path:
    """Writes report.html, and for studies report.md and its figures.

    Args:
      workdir: a study, a run, or a folder of studies and runs, of which those that can't
        be read are left out and named.
      out: the folder to write into; None is `workdir` itself.

    Returns:
      The path of report.html.

    Raises:
      ConfigError: there is nothing to report, the report can't be written, or it would
        replace a file that is not a report.
    """
    root = files.absolute(workdir)
    target = root if out is None else files.absolute(out)
    option = "--workdir" if out is None else "--out"
    _check_can_write(target, option, root)
    gathered = gather(root)
    _check_replaces_a_report(target, with_text=bool(gathered.studies))

    document, page_text, gathered = _drawn(root, gathered)
    for name, reason in gathered.left_out.items():
        print(shown(f"{name} is left out: {reason}"), flush=True)
    if out is not None:
        files.make_folder(target)
    # The page is first: it marks the other files as those of a report.
    path = RunDir(target).report
    files.write(path, page_text.encode())
    if gathered.studies:
        markdown.write(document, StudyDir(target).report)
    return path


def _check_can_write(target: epath.Path, option: str, root: epath.Path) -> None:
    """Refuses a folder where the report can't be written, before anything is read."""
    if option == "--workdir" and not root.is_dir():
        return  # `gather` refuses it, with the better message
    is_folder = target.is_dir() or files.is_remote(target)
    path = target / "report.html" if is_folder else target
    try:
        files.check_can_write(path)
    except ConfigError as error:
        raise ConfigError(
            f"the report can't be written ({error}): give --out, a folder that can be"
            " written"
        ) from error
    if target.exists() and not target.is_dir():
        raise ConfigError(f"{target} is a file: choose another {option}, a folder")


def _check_replaces_a_report(target: epath.Path, with_text: bool) -> None:
    """Refuses to replace what `report` did not write."""
    written = RunDir(target).report
    if written.exists() and page.is_ours(written.read_bytes()):
        return
    paths = [written]
    if with_text:
        text = StudyDir(target).report
        paths += [text, text.parent / markdown.FOLDER]
    for path in paths:
        if path.exists():
            raise ConfigError(
                f"{shown(path)} exists and is not a report that sparsecod wrote: move it"
                " away, or give --out, another folder"
            )


def _drawn(root: epath.Path, gathered: Gathered) -> tuple[Document, str, Gathered]:
    """The report as a document and as a page, and what it shows.

    Damage may show only when a run is drawn; such a run is left out, too.

    Raises:
      ConfigError: nothing can be drawn.
    """
    try:
        document = _document(root, gathered)
        return document, page.render(document), gathered
    except Exception as error:
        kept = _drawable(root, gathered)
        if kept == gathered:
            raise  # none of them alone is at fault
        if not kept.studies and not kept.runs:
            raise ConfigError(
                f"nothing in {root} can be drawn ({gist(error)}): restore it from a copy"
            ) from error
        document = _document(root, kept)
        return document, page.render(document), kept


def _drawable(root: epath.Path, gathered: Gathered) -> Gathered:
    """The studies and runs that can be drawn, each by itself."""
    left_out = dict(gathered.left_out)
    runs = [run for run in gathered.runs if _can_draw_run(root, run, left_out)]
    studies = []
    for data in gathered.studies:
        kept = _without_damaged(root, data)
        if _can_draw(root, Gathered([kept], [], {}), kept.name, left_out):
            studies.append(kept)
    return Gathered(studies, runs, left_out)


def _without_damaged(root: epath.Path, data: StudyData) -> StudyData:
    """A study without the runs that can't be drawn."""
    damaged = dict(data.damaged)
    runs = {
        key: run for key, run in data.runs.items() if _can_draw_run(root, run, damaged)
    }
    return dataclasses.replace(data, runs=runs, damaged=damaged)


def _can_draw_run(root: epath.Path, run: RunData, reasons: dict[str, str]) -> bool:
    return _can_draw(root, Gathered([], [run], {}), run.name, reasons)


def _can_draw(
    root: epath.Path, gathered: Gathered, name: str, reasons: dict[str, str]
) -> bool:
    """Whether it can be drawn; adds the reason to `reasons` where it can't."""
    try:
        page.render(_document(root, gathered))
    except Exception as error:
        reasons[name] = f"it is damaged ({gist(error)})"
        return False
    return True


def _document(root: epath.Path, gathered: Gathered) -> Document:
    """The report of a study, or that of a folder."""
    if StudyDir(root).described.exists() and gathered.studies:
        return study.document(gathered.studies[0])
    parts: list[Part] = []
    if gathered.left_out:
        reasons = [f"{name} ({shown(why)})" for name, why in gathered.left_out.items()]
        parts.append(Text(f"Left out: {'; '.join(reasons)}."))
    if gathered.studies:
        parts += studies.document(root.name, gathered.studies).parts
    if gathered.studies and gathered.runs:
        parts.append(Heading("Runs outside the studies"))
    if gathered.runs:
        parts += overview.document(root.name, gathered.runs).parts
    return Document(root.name, parts)
