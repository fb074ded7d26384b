"""What lies in the directory of a study, and where are its runs?"""

import dataclasses
import json
import os
from typing import Any

from etils import epath

from sparsecod_jax.analysis.catalogue import chosen
from sparsecod_jax.config.python_file import gist
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.shell.shown import shown
from sparsecod_jax.storage import files, records
from sparsecod_jax.storage.ownership import check_free_or_ours, names_in
from sparsecod_jax.storage.rundir import RunDir
from sparsecod_jax.study.study import Claim, Run, Study

PLANS = "plans"  # what a launcher compiles before the study begins
FIELDS = tuple(field.name for field in dataclasses.fields(Study))


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


def read(directory: StudyDir) -> tuple[dict[str, Any], dict[str, RunDir]]:
    """What study.json says, and the directory of each run.

    Raises:
      ConfigError: it is damaged, or not what a sweep writes.
    """
    described = records.read_record(directory.described)
    try:
        fields: dict[str, Any] = {
            name: described[name] for name in FIELDS if name in described
        }
        fields["claims"] = _claims(described)
        study = Study(**fields)
        expected = {f"{arm}-s{seed}" for arm in study.arms for seed in study.seeds}
        if expected != set(described["runs"]):
            raise ValueError("its runs are not those of its arms and seeds")
        if not all(
            isinstance(entry[name], str)
            for entry in described["runs"].values()
            for name in ("arm", "data", "identity")
        ):
            raise TypeError("its runs have no words for arm, data and identity")
        places = {
            name: _place(directory, described["places"][name])
            for name in described["runs"]
        }
    except (LookupError, TypeError, ValueError, AttributeError, ConfigError) as error:
        raise ConfigError(
            f"{directory.described} is not what a sweep writes ({gist(error)}): restore it from a copy"
        ) from error
    return described, places


def _claims(described: dict[str, Any]) -> tuple[Claim, ...]:
    return tuple(Claim(**claim) for claim in described["claims"])


def _place(directory: StudyDir, relative: str) -> RunDir:
    """The directory of a run, which lies in that of its study, or in that of a study beside it.

    Raises:
      ValueError: it lies anywhere else.
    """
    parts = relative.split("/")
    own, shared = len(parts) == 2, len(parts) == 4 and parts[0] == ".."
    if (
        not (own or shared)
        or parts[-2] != "runs"
        or {"", ".", ".."}.intersection(parts[-3:])
    ):
        raise ValueError(f"{relative!r} is no place of a run of a study")
    return RunDir(directory.path / relative)


def begin(
    directory: StudyDir, spec: str, study: Study, runs: list[Run]
) -> dict[str, RunDir]:
    """Writes study.json where there is none; returns the directory of each run, and raises, as `locate` does."""
    places = locate(directory, study, runs)
    if not directory.described.exists():
        relative = {
            name: os.path.relpath(place.path, directory.path)
            for name, place in places.items()
        }
        records.write_record(
            directory.described,
            {"sweep": spec, **_describe(study, runs), "places": relative},
        )
    return places


def locate(directory: StudyDir, study: Study, runs: list[Run]) -> dict[str, RunDir]:
    """The directory of each run. A run that another study beside this one has, by its identity, is that one: it is trained once.

    A study is the same by what it says, whatever path its file was named by.

    Raises:
      ConfigError: the directory holds another study, or something else.
    """
    ours = directory.described.exists() or names_in(directory.path) <= {PLANS}
    check_free_or_ours(directory.path, ours=ours, option="--workdir", kind="a study")
    if not directory.described.exists():
        shared = _runs_beside(directory)
        return {
            run.name: shared.get(run.identity) or directory.run(run.name)
            for run in runs
        }
    records.warn_if_unchecked(directory.described)
    (before, places), now = read(directory), _describe(study, runs)
    changed = sorted(name for name in now if before.get(name) != now.get(name))
    if changed:
        raise ConfigError(
            f"{directory.path} holds another study ({', '.join(changed)} differ): choose another --workdir"
        )
    return places


def _describe(study: Study, runs: list[Run]) -> dict[str, Any]:
    """The study as JSON has it."""
    named = {
        run.name: {
            "arm": run.arm,
            "seed": run.seed,
            "data": run.experiment.data.path,
            "identity": run.identity,
        }
        for run in runs
    }
    return json.loads(json.dumps({**dataclasses.asdict(study), "runs": named}))


def verbs(study: Study, run: Run, place: RunDir) -> list[list[str]]:
    """What `sparsecod` is told to do for a run, one after the other."""
    path = os.fspath(place.path)
    train = ["train", f"--config={study.config}", *run.overrides, f"--workdir={path}"]
    analyze = [
        "analyze",
        f"--workdir={path}",
        *(f"--{name}={value}" for name, value in study.analyze.items()),
    ]
    return [train, analyze] if study.analyze else [train]


def remaining(study: Study, run: Run, place: RunDir) -> list[list[str]]:
    """Those of its verbs that are not done."""
    train, *analyze = verbs(study, run, place)
    left = [] if place.final.exists() else [train]
    return (
        left
        if not analyze or is_scored(place, study.analyze.get("scores"))
        else [*left, *analyze]
    )


def is_begun(place: RunDir) -> bool:
    """Whether anything of a run is there."""
    return any(
        file.exists()
        for file in (place.config, place.metrics, place.status, place.attempts)
    )


def is_scored(place: RunDir, scores: str | None) -> bool:
    """Whether these scores of a run (None: all) can be read; whatever is wrong with them, `analyze` will say."""
    try:
        found = records.read_record(place.analysis.scores)
        return set(chosen(scores)) <= set(found["sequences"])
    except Exception:  # damage shows as almost any type
        return False


def _runs_beside(directory: StudyDir) -> dict[str, RunDir]:
    """The runs of the studies beside this one, by identity; a study that can't be read is left out and named."""
    found: dict[str, RunDir] = {}
    for file in sorted(directory.path.parent.glob("*/study.json")):
        if file.parent == directory.path:
            continue
        try:
            described, places = read(StudyDir(file.parent))
        except ConfigError as error:
            print(shown(f"the study in {file.parent} is left out: {error}"), flush=True)
            continue
        found = {
            entry["identity"]: places[name] for name, entry in described["runs"].items()
        } | found
    return found
