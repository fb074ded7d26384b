"""What is known of a study?

Study data: what study.json declares, and the runs as far as they are there.
"""

import dataclasses
from typing import Any

from sparsecod_jax import config
from sparsecod_jax.errors import SparsecodError
from sparsecod_jax.report.runs import RunData, load_run
from sparsecod_jax.storage.rundir import RunDir
from sparsecod_jax.study.study import Claim, identity_by_path
from sparsecod_jax.study.study_dir import StudyDir, is_begun, is_scored, read

MISCONFIGURED = "misconfigured"
Runs = dict[tuple[str, int], RunData]  # by arm and seed


@dataclasses.dataclass(frozen=True)
class StudyData:
    """What a report needs of one study.

    Attributes:
      described: study.json.
      runs: those that have begun.
      missing: names of runs that have not begun.
      unscored: names of finished runs that lack scores.
      damaged: why a run can't be read, by its name.
    """

    name: str
    described: dict[str, Any]
    runs: Runs
    missing: list[str]
    unscored: list[str]
    damaged: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def shown(self) -> Runs:
        """The runs that are those which the study declares."""
        return {
            key: run for key, run in self.runs.items() if run.status != MISCONFIGURED
        }

    @property
    def finished(self) -> Runs:
        return {key: run for key, run in self.runs.items() if run.is_finished}

    @property
    def arms(self) -> list[str]:
        return list(self.described["arms"])

    @property
    def claims(self) -> list[Claim]:
        return [Claim(**claim) for claim in self.described["claims"]]

    def finished_of(self, arm: str) -> list[RunData]:
        """The finished runs of an arm, one per seed."""
        return [run for (name, _), run in self.finished.items() if name == arm]


def load_study(directory: StudyDir) -> StudyData:
    """Reads the runs of a study, wherever they are.

    A run that is not the one which the study declares has the status `misconfigured`.

    Raises:
      ConfigError: study.json is damaged, or not what a sweep writes.
    """
    record, run_dirs = read(directory)
    data = StudyData(directory.path.name, record.to_dict(), {}, [], [])
    for name, run_dir in run_dirs.items():
        if not is_begun(run_dir):
            data.missing.append(name)
            continue
        try:
            _add(data, name, run_dir)
        except SparsecodError as error:
            data.damaged[name] = str(error)
    return data


def _add(data: StudyData, name: str, run_dir: RunDir) -> None:
    """Reads a run and adds it to the study."""
    declared = data.described["runs"][name]
    run = load_run(run_dir, name)
    identity = identity_by_path(config.from_dict(run.config), declared["data"])
    if identity != declared["identity"]:
        run = dataclasses.replace(run, status=MISCONFIGURED)
    data.runs[declared["arm"], declared["seed"]] = run

    analyze = data.described["analyze"]
    if not run.is_finished or not analyze:
        return
    if not is_scored(run_dir, analyze.get("scores")):
        data.unscored.append(name)
