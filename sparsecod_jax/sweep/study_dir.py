"""What lies in the directory of a study, and where are its runs?"""

import dataclasses
import json
import os
from typing import Any

from etils import epath

from sparsecod_jax import files
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.files import read_record, write_record
from sparsecod_jax.ownership import check_free_or_ours, names_in
from sparsecod_jax.rundir import RunDir, read_loosely
from sparsecod_jax.sweep.study import Run, Study

PLANS = "plans"  # what a launcher compiles before the study begins


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
        write_record(directory.described, {**_describe(spec, study, runs), "places": relative})
    return places


def locate(directory: StudyDir, spec: str, study: Study, runs: list[Run]) -> dict[str, RunDir]:
    """The directory of each run. A run that another study beside this one has, by its identity, is that one: it is trained once.

    Raises:
      ConfigError: the directory holds another study, or something else.
    """
    ours = _is_ours(directory.described) or names_in(directory.path) <= {PLANS}
    check_free_or_ours(directory.path, ours=ours, option="--workdir", kind="a study")
    if not directory.described.exists():
        elsewhere = _elsewhere(directory)
        return {run.name: elsewhere.get(run.identity) or directory.run(run.name) for run in runs}
    before, described = read_record(directory.described), _describe(spec, study, runs)
    # The same study may be spelled otherwise, as from another working folder: what it says decides.
    changed = sorted(name for name in described if name != "sweep" and before.get(name) != described.get(name))
    if changed:
        raise ConfigError(f"{directory.path} holds another study ({', '.join(changed)} differ): choose another --workdir")
    return {name: _place(directory, place) for name, place in before["places"].items()}


def _is_ours(described: epath.Path) -> bool:
    return {"runs", "places"} <= read_loosely(described).keys()


def _place(directory: StudyDir, relative: str) -> RunDir:
    """The directory of a run, which is in that of the study, or of a study beside it."""
    place = RunDir(directory.path / relative)
    if directory.path.parent not in place.path.parents:
        raise ConfigError(f"{directory.described} places a run at {place.path}, outside of the studies here: restore it from a copy")
    return place


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


def _elsewhere(directory: StudyDir) -> dict[str, RunDir]:
    """Where the runs of the studies beside this one are, by identity. A folder that only looks like a study is named and left out."""
    found: dict[str, RunDir] = {}
    for file in sorted(directory.path.parent.glob("*/study.json")):
        if file.parent == directory.path:
            continue
        try:
            other = read_record(file)
            places = {entry["identity"]: _place(StudyDir(file.parent), other["places"][name]) for name, entry in other["runs"].items()}
        except (ConfigError, OSError, KeyError, TypeError, AttributeError) as error:
            print(f"{file} is left out ({type(error).__name__}: {error})", flush=True)
            continue
        found = {**places, **found}
    return found
