"""What lies in the directory of a study, and where are its runs?"""

import dataclasses
import json
import os
from typing import Any

from etils import epath

from sparsecod_jax import files
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.files import read_json, write_json
from sparsecod_jax.rundir import RunDir
from sparsecod_jax.sweep.study import Run, Study


@dataclasses.dataclass(frozen=True)
class StudyDir:
    """The files of one study."""

    path: epath.Path

    def __post_init__(self):
        object.__setattr__(self, "path", files.absolute(self.path))

    described = property(lambda self: self.path / "study.json")
    report = property(lambda self: self.path / "report.md")  # beside report.html
    logs = property(lambda self: self.path / "logs")  # what each run printed

    def run(self, name: str) -> RunDir:
        return RunDir(self.path / "runs" / name)


def begin(directory: StudyDir, spec: str, study: Study, runs: list[Run]) -> dict[str, RunDir]:
    """Writes study.json where there is none; returns the directory of each run, and raises, as `locate` does."""
    places = locate(directory, spec, study, runs)
    if not directory.described.exists():
        relative = {name: os.path.relpath(place.path, directory.path) for name, place in places.items()}
        write_json(directory.described, {**_describe(spec, study, runs), "places": relative})
    return places


def locate(directory: StudyDir, spec: str, study: Study, runs: list[Run]) -> dict[str, RunDir]:
    """The directory of each run. A run that another study beside this one has, by its identity, is that one: it is trained once.

    Raises:
      ConfigError: the directory holds another study.
    """
    if not directory.described.exists():
        return {run.name: _elsewhere(directory, run) or directory.run(run.name) for run in runs}
    before, described = read_json(directory.described), _describe(spec, study, runs)
    changed = sorted(name for name in described if before.get(name) != described.get(name))
    if changed:
        raise ConfigError(f"{directory.path} holds another study ({', '.join(changed)} differ): choose another --workdir")
    return {name: RunDir(directory.path / place) for name, place in before["places"].items()}


def _describe(spec: str, study: Study, runs: list[Run]) -> dict[str, Any]:
    """The study as JSON has it."""
    named = {run.name: {"arm": run.arm, "seed": run.seed, "data": run.experiment.data.path, "identity": run.identity} for run in runs}
    return json.loads(json.dumps({"sweep": spec, **dataclasses.asdict(study), "runs": named}))


def verbs(study: Study, run: Run, place: RunDir) -> list[list[str]]:
    """What `sparsecod` is told to do for a run, one after the other."""
    path = os.fspath(place.path)
    train = ["train", f"--config={study.config}", *run.overrides, f"--workdir={path}"]
    analyze = ["analyze", f"--workdir={path}", *(f"--{name}={value}" for name, value in study.analyze.items())]
    return [train, analyze] if study.analyze else [train]


def remaining(study: Study, run: Run, place: RunDir) -> list[list[str]]:
    """Those of its verbs that are not done."""
    train, *analyze = verbs(study, run, place)
    left = [] if place.final.exists() else [train]
    return left if not analyze or _is_scored(study, place) else [*left, *analyze]


def _is_scored(study: Study, place: RunDir) -> bool:
    from sparsecod_jax.analysis.scores import is_complete  # knows what scores there are, and brings jax along, which takes seconds

    return is_complete(place.analysis, study.analyze.get("scores"))


def _elsewhere(directory: StudyDir, run: Run) -> RunDir | None:
    for file in sorted(directory.path.parent.glob("*/study.json")):
        if file.parent == directory.path:
            continue
        other = read_json(file)
        for name, entry in other["runs"].items():
            if entry["identity"] == run.identity:
                return RunDir(file.parent / other["places"][name])
    return None
