"""What lies in the directory of a study, and where are its runs?

Study directory: paths, what is declared before the first run, and what remains to be done.
"""

import dataclasses
import os

from etils import epath

from sparsecod_jax.analysis.catalogue import chosen
from sparsecod_jax.config.python_file import gist
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.shell.shown import shown
from sparsecod_jax.storage import files, records
from sparsecod_jax.storage.ownership import check_free_or_ours, names_in
from sparsecod_jax.storage.rundir import RunDir
from sparsecod_jax.study import record
from sparsecod_jax.study.record import StudyRecord
from sparsecod_jax.study.study import Run, Study

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
        """The directory of a run that no other study has."""
        return RunDir(self.path / "runs" / name)


def read(directory: StudyDir) -> tuple[StudyRecord, dict[str, RunDir]]:
    """The content of study.json, and the directory of each run by name.

    Raises:
      ConfigError: it is damaged, or not what a sweep writes.
    """
    values = records.read_record(directory.described)
    try:
        declared = record.from_dict(values)
        run_dirs = {
            name: _run_dir(directory, path) for name, path in declared.places.items()
        }
    except (LookupError, TypeError, ValueError, AttributeError, ConfigError) as error:
        raise ConfigError(
            f"{directory.described} is not what a sweep writes ({gist(error)}):"
            " restore it from a copy"
        ) from error
    return declared, run_dirs


def _run_dir(directory: StudyDir, relative: str) -> RunDir:
    """The directory of a run, in its study's directory or in that of a study beside it.

    Raises:
      ValueError: it lies anywhere else.
    """
    parts = relative.split("/")
    is_own = len(parts) == 2
    is_beside = len(parts) == 4 and parts[0] == ".."
    # Of `../STUDY/runs/NAME` and `runs/NAME`, what follows a first `..` must be names.
    is_named = not {"", ".", ".."}.intersection(parts[-3:])
    if not (is_own or is_beside) or parts[-2] != "runs" or not is_named:
        raise ValueError(f"{relative!r} is not the path of a run of a study")
    return RunDir(directory.path / relative)


def begin(
    directory: StudyDir, spec: str, study: Study, runs: list[Run]
) -> dict[str, RunDir]:
    """Writes study.json where there is none.

    Args:
      spec: the study file and scale, as the user named them.

    Returns:
      The directory of each run by name.

    Raises:
      ConfigError: as `locate`.
    """
    run_dirs = locate(directory, study, runs)
    if not directory.described.exists():
        places = {
            name: os.path.relpath(run_dir.path, directory.path)
            for name, run_dir in run_dirs.items()
        }
        declared = StudyRecord(spec, study, record.run_records(runs), places)
        records.write_record(directory.described, declared.to_dict())
    return run_dirs


def locate(directory: StudyDir, study: Study, runs: list[Run]) -> dict[str, RunDir]:
    """The directory of each run by name.

    A run that a study beside this one has, by its identity, is trained once, for both.
    A study stays the same whatever path its file was named by, and however it is worded.

    Raises:
      ConfigError: the directory holds another study, or something else.
    """
    has_record = directory.described.exists()
    is_ours = has_record or names_in(directory.path) <= {PLANS}
    check_free_or_ours(directory.path, ours=is_ours, option="--workdir", kind="a study")
    if not has_record:
        shared = _runs_beside(directory)
        return {
            run.name: shared.get(run.identity) or directory.run(run.name)
            for run in runs
        }
    records.warn_if_unchecked(directory.described)
    declared, run_dirs = read(directory)
    changed = record.differences(declared, study, runs)
    if changed:
        raise ConfigError(
            f"{directory.path} holds another study ({', '.join(changed)} differ):"
            " choose another --workdir"
        )
    return run_dirs


def commands(study: Study, run: Run, run_dir: RunDir) -> list[list[str]]:
    """The arguments of `sparsecod` for a run, one command after the other."""
    workdir = f"--workdir={os.fspath(run_dir.path)}"
    train = ["train", f"--config={study.config}", *run.overrides, workdir]
    if not study.analyze:
        return [train]
    options = [f"--{name}={value}" for name, value in study.analyze.items()]
    return [train, ["analyze", workdir, *options]]


def remaining(study: Study, run: Run, run_dir: RunDir) -> list[list[str]]:
    """Those of its commands that are not done."""
    train, *analyze = commands(study, run, run_dir)
    left = []
    if not run_dir.final.exists():
        left.append(train)
    if analyze and not is_scored(run_dir, study.analyze.get("scores")):
        left += analyze
    return left


def is_begun(run_dir: RunDir) -> bool:
    """Whether anything of a run is there."""
    begun = (run_dir.config, run_dir.metrics, run_dir.status, run_dir.attempts)
    return any(file.exists() for file in begun)


def is_scored(run_dir: RunDir, scores: str | None) -> bool:
    """Whether these scores of a run (None: all) can be read.

    Whatever is wrong with them, `sparsecod analyze` will tell.
    """
    try:
        found = records.read_record(run_dir.analysis.scores)
        return set(chosen(scores)) <= set(found["sequences"])
    except Exception:  # damage shows as almost any type
        return False


def _runs_beside(directory: StudyDir) -> dict[str, RunDir]:
    """The runs of the studies beside this one, by identity.

    A study that can't be read is left out, with a message.
    """
    by_identity: dict[str, RunDir] = {}
    for file in sorted(directory.path.parent.glob("*/study.json")):
        if file.parent == directory.path:
            continue
        try:
            declared, run_dirs = read(StudyDir(file.parent))
        except ConfigError as error:
            print(shown(f"the study in {file.parent} is left out: {error}"), flush=True)
            continue
        # Of several studies with the same run, the first by name has it.
        for name, run in declared.runs.items():
            by_identity.setdefault(run.identity, run_dirs[name])
    return by_identity
