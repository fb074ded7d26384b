"""What in a folder can be reported, and what is left out?

Runs and studies of a folder: a damaged one is left out, and the others are reported.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from etils import epath

from sparsecod_jax.config.python_file import gist
from sparsecod_jax.errors import ConfigError, SparsecodError
from sparsecod_jax.report.runs import RunData, load_run
from sparsecod_jax.report.study_data import StudyData, load_study
from sparsecod_jax.storage.rundir import RunDir
from sparsecod_jax.study.study_dir import StudyDir, is_begun


@dataclasses.dataclass(frozen=True)
class Gathered:
    """The studies and runs of a folder.

    Attributes:
      runs: those that belong to none of these studies.
      left_out: why a folder can't be read, by its name.
    """

    studies: list[StudyData]
    runs: list[RunData]
    left_out: dict[str, str]


def gather(root: epath.Path) -> Gathered:
    """The study or run at `root`, or all of those in its folders and in `root/runs`.

    Raises:
      ConfigError: there is none, or none that can be read.
    """
    if _is_study(root):
        return Gathered([load_study(StudyDir(root))], [], {})
    if is_begun(RunDir(root)):
        return Gathered([], [load_run(RunDir(root))], {})

    folders = _subfolders(root) + _subfolders(root / "runs")
    study_dirs = [StudyDir(folder) for folder in folders if _is_study(folder)]
    run_dirs = [RunDir(folder) for folder in folders if not _is_study(folder)]
    begun = [run for run in run_dirs if is_begun(run)]
    left_out: dict[str, str] = {}
    studies = _readable(load_study, study_dirs, left_out)
    runs = _readable(load_run, begun, left_out)
    if studies or runs:
        return Gathered(studies, runs, left_out)

    unreadable = [f"; {name} is left out: {why}" for name, why in left_out.items()]
    raise ConfigError(
        f"{root} holds no run{''.join(unreadable)}: give a --workdir that"
        " `sparsecod train` wrote, or a folder of such runs"
    )


def _is_study(folder: epath.Path) -> bool:
    return StudyDir(folder).described.exists()


def _subfolders(folder: epath.Path) -> list[epath.Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _readable(
    load: Callable[[Any], Any], directories: list[Any], left_out: dict[str, str]
) -> list[Any]:
    """Loads what can be read; adds the reason to `left_out` for what can't."""
    loaded = []
    for directory in directories:
        try:
            loaded.append(load(directory))
        except SparsecodError as error:
            left_out[directory.path.name] = str(error)
        except Exception as error:  # damage shows as almost any type
            left_out[directory.path.name] = f"it is damaged ({gist(error)})"
    return loaded
