"""Which report does a folder get? The verb `report`."""

from etils import epath

from sparsecod_jax import files
from sparsecod_jax.report import markdown, overview, page, studies, study
from sparsecod_jax.report.runs import load_run
from sparsecod_jax.rundir import RunDir, find_runs
from sparsecod_jax.sweep.study_dir import StudyDir


def write_report(workdir: str) -> epath.Path:
    """Writes report.html, for studies report.md and its figures too, and returns the path of the page.

    Args:
      workdir: a study, a folder of studies, a run, or a folder of runs.

    Raises:
      ConfigError: there is nothing of that kind.
    """
    root = files.absolute(workdir)
    found = [StudyDir(folder.parent) for folder in sorted(root.glob("*/study.json"))] if root.is_dir() else []
    if StudyDir(root).described.exists():
        document = study.document(study.load_study(StudyDir(root)))
    elif found:
        document = studies.document(root.name, [study.load_study(directory) for directory in found])
    else:
        document = overview.document(root.name, [load_run(run) for run in find_runs(root)])
    if found or StudyDir(root).described.exists():
        markdown.write(document, root / "report.md")
    path = RunDir(root).report
    files.write(path, page.render(document).encode())
    return path
