"""What does a study directory record about its study?

Study record: study.json, which is written before the first run and never again.
"""

import dataclasses
import json
from typing import Any

from sparsecod_jax.study.study import Claim, Run, Study

STUDY_FIELDS = tuple(field.name for field in dataclasses.fields(Study))


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """One run of the study, as it was declared."""

    arm: str
    seed: int
    data: str  # the data directory
    identity: str


@dataclasses.dataclass(frozen=True)
class StudyRecord:
    """The content of study.json."""

    sweep: str  # the study file and scale, as they were named first
    study: Study
    runs: dict[str, RunRecord]
    places: dict[str, str]  # run directories by run, relative to the study directory

    def to_dict(self) -> dict[str, Any]:
        """The JSON object, with lists in place of tuples."""
        values = {
            "sweep": self.sweep,
            **dataclasses.asdict(self.study),
            "runs": {name: dataclasses.asdict(run) for name, run in self.runs.items()},
            "places": self.places,
        }
        return json.loads(json.dumps(values))


def from_dict(values: dict[str, Any]) -> StudyRecord:
    """Reads what `to_dict` made.

    Raises:
      LookupError, TypeError, ValueError, AttributeError, ConfigError: it is something else.
    """
    # Earlier versions lack some fields, which have defaults.
    fields = {name: values[name] for name in STUDY_FIELDS if name in values}
    fields["claims"] = tuple(Claim(**claim) for claim in values["claims"])
    study = Study(**fields)
    runs = {name: _run_record(entry) for name, entry in values["runs"].items()}
    if set(runs) != {f"{arm}-s{seed}" for arm in study.arms for seed in study.seeds}:
        raise ValueError("its runs are not those of its arms and seeds")
    places = {name: values["places"][name] for name in runs}
    return StudyRecord(values["sweep"], study, runs, places)


def _run_record(entry: dict[str, Any]) -> RunRecord:
    run = RunRecord(entry["arm"], entry["seed"], entry["data"], entry["identity"])
    if not all(isinstance(text, str) for text in (run.arm, run.data, run.identity)):
        raise TypeError("arm, data and identity of its runs are not all texts")
    return run


def run_records(runs: list[Run]) -> dict[str, RunRecord]:
    """What is recorded about each run."""
    return {
        run.name: RunRecord(run.arm, run.seed, run.experiment.data.path, run.identity)
        for run in runs
    }


def differences(record: StudyRecord, study: Study, runs: list[Run]) -> list[str]:
    """Names of what a study changes in what was declared before its first run.

    Wording may be corrected at any time: the question, what is held fixed or not testable,
    the texts of claims, the labels of mechanisms, and the path of the config, since the
    identities of the runs tell what is trained. The recorded wording is kept.
    """
    before = _substance(record.study, record.runs)
    now = _substance(study, run_records(runs))
    return sorted(name for name in now if before[name] != now[name])


def _substance(study: Study, runs: dict[str, RunRecord]) -> dict[str, Any]:
    """What makes a study this one, in values that can be compared."""
    # Arms may hold tuples, which JSON reads as lists.
    values = json.loads(json.dumps(dataclasses.asdict(study)))
    compared = ("arms", "seeds", "changes", "analyze", "published")
    return {
        **{name: values[name] for name in compared},
        "claims": {dataclasses.replace(claim, text="") for claim in study.claims},
        "mechanism": set(study.mechanism.values()),
        "runs": runs,
    }
