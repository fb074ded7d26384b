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
    directory = StudyDir(root)
    if directory.described.exists():
        document = study.document(study.load_study(directory))
        markdown.write(document, directory.report)
    elif found := sorted(root.glob("*/study.json")) if root.is_dir() else []:
        document = studies.document(root.name, [study.load_study(StudyDir(file.parent)) for file in found])
        markdown.write(document, directory.report)
    else:
        document = overview.document(root.name, [load_run(run) for run in find_runs(root)])
    path = RunDir(root).report
    files.write(path, page.render(document).encode())
    return path
