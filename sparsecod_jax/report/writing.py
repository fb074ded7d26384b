"""Which report does a folder get? The subcommand `report`."""

import dataclasses

from etils import epath

from sparsecod_jax.config.python_file import gist
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.report import markdown, overview, page, studies, study
from sparsecod_jax.report.document import Document, Heading, Part, Text
from sparsecod_jax.report.gathering import Found, gather
from sparsecod_jax.report.runs import RunData
from sparsecod_jax.report.study import StudyData
from sparsecod_jax.shell.shown import shown
from sparsecod_jax.storage import files
from sparsecod_jax.storage.rundir import RunDir
from sparsecod_jax.study.study_dir import StudyDir

SHOWN = 300  # characters of a reason why something is left out


def write_report(workdir: str, out: str | None = None) -> epath.Path:
    """Writes report.html, for studies report.md and its figures too, and returns the path of the page.

    Args:
      workdir: a study, a run, or a folder of studies and runs, of which those that can't be read are left out and named.
      out: the folder to write into; None is `workdir` itself.

    Raises:
      ConfigError: there is nothing of that kind, the report can't be written, or it would replace
        what is no report.
    """
    root = files.absolute(workdir)
    target = root if out is None else files.absolute(out)
    _check_can_write(target, "--workdir" if out is None else "--out", root)
    gathered = gather(root)
    _check_replaces_a_report(target, with_text=bool(gathered.studies))
    document, text, found = _drawn(root, gathered)
    for name, reason in found.left_out.items():
        print(shown(f"{name} is left out: {reason}", SHOWN), flush=True)
    if out is not None:
        files.make_folder(target)
    files.write(
        RunDir(target).report, text.encode()
    )  # first, as it says whose report this is
    if found.studies:
        markdown.write(document, StudyDir(target).report)
    return RunDir(target).report


def _check_can_write(target: epath.Path, option: str, root: epath.Path) -> None:
    """Refuses a folder where the report can't be written, before anything is read."""
    if option == "--workdir" and not root.is_dir():
        return  # told by what is not there
    try:
        files.check_can_write(
            target / "report.html"
            if target.is_dir() or files.is_remote(target)
            else target
        )
    except ConfigError as error:
        raise ConfigError(
            f"the report can't be written ({error}): give --out, a folder that can be written"
        ) from error
    if target.exists() and not target.is_dir():
        raise ConfigError(f"{target} is a file: choose another {option}, a folder")


def _check_replaces_a_report(target: epath.Path, with_text: bool) -> None:
    """Refuses to replace what `report` did not write."""
    written = RunDir(target).report
    if written.exists() and page.is_ours(written.read_bytes()):
        return
    text = StudyDir(target).report
    names = [written, text, text.parent / markdown.FOLDER] if with_text else [written]
    for path in names:
        if path.exists():
            said = f"{shown(path)} exists and is not a report that sparsecod wrote"
            raise ConfigError(f"{said}: move it away, or give --out, another folder")


def _drawn(root: epath.Path, found: Found) -> tuple[Document, str, Found]:
    """The report as a document and as a page; what can't be drawn is left out, as damage may show no sooner.

    Raises:
      ConfigError: nothing can be drawn.
    """
    try:
        document = _document(root, found)
        return document, page.render(document), found
    except Exception as error:
        kept = _drawable(root, found)
        if kept == found:
            raise  # not by the fault of one of them
        if not kept.studies and not kept.runs:
            raise ConfigError(
                f"nothing in {root} can be drawn ({gist(error)}): restore it from a copy"
            ) from error
        document = _document(root, kept)
        return document, page.render(document), kept


def _drawable(root: epath.Path, found: Found) -> Found:
    """What can be drawn by itself."""
    left_out = dict(found.left_out)
    runs = [
        run
        for run in found.runs
        if _draws(root, Found([], [run], {}), run.name, left_out)
    ]
    mended = [_without_damaged(root, each) for each in found.studies]
    kept = [
        each
        for each in mended
        if _draws(root, Found([each], [], {}), each.name, left_out)
    ]
    return Found(kept, runs, left_out)


def _without_damaged(root: epath.Path, data: StudyData) -> StudyData:
    """A study without the runs that can't be drawn."""
    damaged = dict(data.damaged)
    runs: dict[tuple[str, int], RunData] = {
        key: run
        for key, run in data.runs.items()
        if _draws(root, Found([], [run], {}), run.name, damaged)
    }
    return dataclasses.replace(data, runs=runs, damaged=damaged)


def _draws(root: epath.Path, found: Found, name: str, reasons: dict[str, str]) -> bool:
    try:
        page.render(_document(root, found))
    except Exception as error:
        reasons[name] = f"it is damaged ({gist(error)})"
        return False
    return True


def _document(root: epath.Path, found: Found) -> Document:
    if StudyDir(root).described.exists() and found.studies:
        return study.document(found.studies[0])
    parts: list[Part] = []
    if found.studies:
        parts += studies.document(root.name, found.studies).parts
    if found.studies and found.runs:
        parts.append(Heading("Runs outside the studies"))
    if found.runs:
        parts += overview.document(root.name, found.runs).parts
    if found.left_out:
        reasons = [
            f"{name} ({shown(reason, SHOWN)})"
            for name, reason in found.left_out.items()
        ]
        parts.insert(0, Text(f"Left out: {'; '.join(reasons)}."))
    return Document(root.name, parts)
