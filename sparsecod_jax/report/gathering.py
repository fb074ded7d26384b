"""What lies in a folder that can be reported, and what is left out? One damaged folder keeps no other from its report."""

import dataclasses
from collections.abc import Callable
from typing import Any

from etils import epath

from sparsecod_jax.config.python_file import gist
from sparsecod_jax.errors import ConfigError, SparsecodError
from sparsecod_jax.report.runs import RunData, load_run
from sparsecod_jax.report.study import StudyData, load_study
from sparsecod_jax.storage.rundir import RunDir
from sparsecod_jax.study.study_dir import StudyDir, is_begun


@dataclasses.dataclass(frozen=True)
class Found:
    """What can be read, and why the rest can't, by the names of its folders."""

    studies: list[StudyData]
    runs: list[RunData]  # that belong to none of these studies
    left_out: dict[str, str]


def gather(root: epath.Path) -> Found:
    """The study or run at `root`, or all of those in its folders, and in its folder `runs`.

    Raises:
      ConfigError: there is none, or none that can be read.
    """
    left_out: dict[str, str] = {}
    if StudyDir(root).described.exists():
        studies, runs = [load_study(StudyDir(root))], []
    elif is_begun(RunDir(root)):
        studies, runs = [], [load_run(RunDir(root))]
    else:
        folders = [
            folder
            for place in (root, root / "runs")
            if place.is_dir()
            for folder in sorted(place.iterdir())
        ]
        studies = readable(
            load_study,
            [
                StudyDir(folder)
                for folder in folders
                if StudyDir(folder).described.exists()
            ],
            left_out,
        )
        places = [
            RunDir(folder)
            for folder in folders
            if is_begun(RunDir(folder)) and not StudyDir(folder).described.exists()
        ]
        runs = readable(load_run, places, left_out)
    if not studies and not runs:
        others = "".join(
            f"; {name} is left out: {reason}" for name, reason in left_out.items()
        )
        raise ConfigError(
            f"{root} holds no run{others}: give a --workdir that `sparsecod train` wrote, or a folder of such runs"
        )
    return Found(studies, runs, left_out)


def readable(
    read: Callable[[Any], Any], places: list[Any], left_out: dict[str, str]
) -> list[Any]:
    """What `read` makes of the places that can be read; of the others `left_out` is told the reason."""
    found = []
    for place in places:
        try:
            found.append(read(place))
        except SparsecodError as error:
            left_out[place.path.name] = str(error)
        except Exception as error:  # damage shows as almost any type
            left_out[place.path.name] = f"it is damaged ({gist(error)})"
    return found
