"""Does today's code resume, score, export and report what earlier commits wrote?

Baselines: data/COMMIT holds what the code of that commit made; `make_baselines` lists its contents.

Some comparisons are exact on every machine: names of files, fields, metrics and arrays; identities;
integers such as steps, tokens and the load of experts; digests of batches; the sequences that are
scored; files that must stay as they are; weights, which an export copies. A restored checkpoint is
exact as well, since it is restored only if its arrays have the digests in it.

All other numbers come of floating-point operations, which another compiler or CPU may order in
another way. Where both are those of the baselines (`made_with.json`), these numbers and the
digests of the last checkpoint must be equal bit for bit. Elsewhere they must agree to a tolerance,
about ten times the largest difference that came of compiling for processors without AVX.
"""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.compatibility import records

ROOT = Path(__file__).resolve().parents[2]
COMMITS = sorted(folder.name for folder in records.DATA.iterdir())

# Relative to the largest number in an array.
TOLERANCE = 5e-5
# Of means, medians and the like, which are small differences of large numbers.
TOLERANCE_OF_MOMENTS = 2e-3

# What later commits than these write on purpose, by the names of fields and files.
ADDED = {
    "37c97fc": set(),
    "4097eee": {
        "committed.json",
        "computed_with",
        "digests.json",
        "identity",
        "skipped_updates",
        "split_special_tokens",
    },
}

MARK = 0.125  # a score that no model here has

# Subcommands one after the other in one process, which starts jax once.
RUN = """
import contextlib, json, sys
from sparsecod_jax.cli import main

for name, words in json.loads(sys.argv[1]).items():
    with open(f"{name}.log", "w") as log, contextlib.redirect_stdout(log):
        main(words)
"""


@dataclasses.dataclass(frozen=True)
class Earlier:
    """What a commit made, and a copy on which today's code has worked."""

    made: Path
    used: Path

    @property
    def added(self) -> set[str]:
        return ADDED[self.made.name]

    @property
    def same_machine(self) -> bool:
        """Whether results here must be those of the baselines in the last bit."""
        made_with = json.loads((self.made / "made_with.json").read_text())
        return records.machine().items() <= made_with.items()

    def log(self, name: str) -> str:
        return (self.used / f"{name}.log").read_text()

    def read(self, file: Path) -> dict[str, Any]:
        """A JSON object without its checksum and without fields that were added since."""
        values = json.loads(file.read_text())
        left_out = {*records.CHECKSUMS, *self.added}
        return {name: value for name, value in values.items() if name not in left_out}

    def check_same(self, actual: Any, expected: Any) -> None:
        check_equal(actual, expected, exactly=self.same_machine)

    def check_same_run(self, actual: Path, expected: Path) -> None:
        """Compares two finished runs by each step, the end, and the last checkpoint."""
        metrics = records.read_metrics(actual)
        self.check_same(metrics, records.read_metrics(expected))
        finals = [self.read(run / "final.json") for run in (actual, expected)]
        self.check_same(*map(records.without_times, finals))
        digests = records.read_digests(actual, records.STEPS)
        earlier = final_digests(expected)
        assert digests.keys() == earlier.keys()
        if self.same_machine:
            assert digests == earlier


def run(folder: Path, caches: Path, commands: dict[str, list[str]]) -> None:
    """Runs today's subcommands in a folder; each one's output goes to NAME.log there."""
    process = subprocess.run(
        [sys.executable, "-P", "-c", RUN, json.dumps(commands)],
        cwd=folder,
        env=records.environment(ROOT, caches),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout


@pytest.fixture(scope="module")
def caches(tmp_path_factory) -> Path:
    """Where compiled programs are kept: those of two commits are the same."""
    return tmp_path_factory.mktemp("caches")


@pytest.fixture(scope="module", params=COMMITS)
def earlier(request, tmp_path_factory, caches) -> Earlier:
    """Today's code has resumed, scored, exported, imported and reported."""
    made = records.DATA / request.param
    used = tmp_path_factory.mktemp(request.param) / "copy"
    shutil.copytree(made, used)
    for copy in ("scored", "unscored"):
        shutil.copytree(used / "finished" / "dense", used / copy)
    shutil.rmtree(used / "unscored" / "analysis")
    mark(used / "scored" / "analysis" / "scores.json")
    exported = ["--workdir=finished/dense", "--out=exported"]
    imported = ["--hf=finished/export", "--workdir=imported"]
    commands = {
        "resume-dense": records.train("dense", "stopped/dense"),
        "resume-moe": records.train("moe", "stopped/moe"),
        "finished": records.train("dense", "finished/dense"),
        "analyze": [*records.SCORE, "--workdir=unscored"],
        "analyze-again": [*records.SCORE, "--workdir=scored"],
        "export": ["export", *exported],
        "import": ["import", *imported],
        "report-run": ["report", "--workdir=finished/moe"],
        "report-study": ["report", "--workdir=finished/study"],
        "sweep": ["sweep", "--sweep=study.py:nano", "--workdir=stopped/study"],
    }
    run(used, caches, commands)
    return Earlier(made, used)


def mark(scores: Path) -> None:
    """Puts MARK in the place of a score, so that one that is computed again shows."""
    values = json.loads(scores.read_text())
    values.pop("checksum", None)  # a record without one is taken as it is
    values["usefulness"]["score"] = MARK
    scores.write_text(json.dumps(values))


@pytest.fixture(scope="module")
def today(tmp_path_factory, caches) -> Path:
    """A folder in which today's code has made everything by itself."""
    folder = tmp_path_factory.mktemp("today")
    made = records.DATA / COMMITS[0]  # the corpus and the config are alike in all
    shutil.copytree(made / "corpus", folder / "corpus")
    shutil.copy(made / "tiny.py", folder)
    commands = {
        "data": list(records.PREPARE),
        "dense": records.train("dense", "finished/dense"),
        "moe": records.train("moe", "finished/moe"),
    }
    run(folder, caches, commands)
    return folder


def check_equal(actual: Any, expected: Any, *, exactly: bool, name: str = "") -> None:
    """Compares nested values: floating-point numbers to a tolerance unless `exactly`."""
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys(), name
        for key, value in expected.items():
            check_equal(actual[key], value, exactly=exactly, name=f"{name}/{key}")
    elif isinstance(expected, list) and not _has_floats(expected):
        assert len(actual) == len(expected), name
        for index, value in enumerate(expected):
            check_equal(actual[index], value, exactly=exactly, name=f"{name}/{index}")
    elif exactly or not _has_floats(expected):
        assert actual == expected, name
    else:
        _check_close(actual, expected, name)


def _has_floats(value: Any) -> bool:
    items = value if isinstance(value, list) else [value]
    return any(isinstance(item, float) for item in items)


def _check_close(actual: Any, expected: Any, name: str) -> None:
    """Compares numbers, or lists of numbers that may have None where there is no value."""
    one, other = np.array(actual, float), np.array(expected, float)
    tolerance = TOLERANCE_OF_MOMENTS if "/moments/" in name else TOLERANCE
    largest = np.nanmax(np.abs(other), initial=0.0)
    np.testing.assert_allclose(
        one, other, rtol=0, atol=tolerance * largest, err_msg=name
    )


def final_digests(run: Path) -> dict[str, list[int]]:
    if (run / "digests.json").exists():
        return json.loads((run / "digests.json").read_text())
    return records.read_digests(run, records.STEPS)


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder by relative path."""
    return {
        os.fspath(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def check_resumed(after: Path, before: Path) -> None:
    """A second attempt has begun at the checkpoint: what came before it was not done again."""
    step = only_checkpoint(before)
    lines = (before / "metrics.jsonl").read_bytes().splitlines()
    assert (after / "metrics.jsonl").read_bytes().splitlines()[:step] == lines[:step]
    attempts = {file.name for file in (after / "attempts").iterdir()}
    assert attempts == {"0001.json", "0002.json"}
    assert not (after / "quarantine").exists()


def only_checkpoint(run: Path) -> int:
    """The step of a run's checkpoint."""
    (step,) = (run / "checkpoints").iterdir()
    return int(step.name)


@pytest.mark.parametrize("model", records.MODELS)
def test_a_stopped_run_resumes_from_its_checkpoint(earlier, model):
    run = Path("stopped") / model
    check_resumed(earlier.used / run, earlier.made / run)


@pytest.mark.parametrize("model", records.MODELS)
def test_a_resumed_run_ends_like_one_that_was_not_stopped(earlier, model):
    resumed = earlier.used / "stopped" / model
    finished = earlier.made / "finished" / model
    earlier.check_same_run(resumed, finished)


def test_a_finished_run_is_recognized_and_left_alone(earlier):
    run = Path("finished") / "dense"
    before, after = contents(earlier.made / run), contents(earlier.used / run)
    printed = json.loads(earlier.log("finished").splitlines()[-1])
    final = json.loads(before["final.json"]) | {"checksum": None}
    assert printed | {"checksum": None} == final
    for files in (before, after):
        del files["status.json"]  # which is written once more
    assert after == before


def test_scores_of_an_earlier_model_are_the_same(earlier):
    before = earlier.made / "finished" / "dense" / "analysis"
    after = earlier.used / "unscored" / "analysis"
    assert (after / "tokens.npy").read_bytes() == (before / "tokens.npy").read_bytes()
    scores = [earlier.read(folder / "scores.json") for folder in (after, before)]
    earlier.check_same(*scores)
    assert contents(after).keys() == contents(before).keys()


def test_scores_that_are_there_are_kept(earlier):
    scores = earlier.used / "scored" / "analysis" / "scores.json"
    assert json.loads(scores.read_text())["usefulness"]["score"] == MARK


def test_an_export_has_the_same_weights_and_settings(earlier):
    before, after = earlier.made / "finished" / "export", earlier.used / "exported"
    names = contents(before).keys()
    assert contents(after).keys() - earlier.added == names
    texts = {"README.md", "digests.json"}  # words may differ, and so the digest of them
    for name in names - texts - {"tokenizer_config.json"}:
        assert (after / name).read_bytes() == (before / name).read_bytes(), name
    settings = [
        earlier.read(side / "tokenizer_config.json") for side in (before, after)
    ]
    assert settings[0] == settings[1]


def test_an_earlier_export_is_imported_with_the_same_weights(earlier):
    trained = final_digests(earlier.made / "finished" / "dense")
    run = earlier.used / "imported"
    imported = records.read_digests(run, only_checkpoint(run))
    parameters = {name for name in trained if name.startswith("state/params/")}
    assert parameters
    assert {name: imported.get(name) for name in parameters} == {
        name: trained[name] for name in parameters
    }


def test_a_report_is_drawn_of_a_run_and_of_a_study(earlier):
    assert (earlier.used / "finished" / "moe" / "report.html").stat().st_size
    text = (earlier.used / "finished" / "study" / "report.md").read_text()
    assert "Does a third block pay?" in text
    assert "depth lowers the loss" in text


def test_a_sweep_finishes_a_study_and_leaves_finished_runs_alone(earlier):
    study = Path("stopped") / "study"
    after, before = earlier.used / study, earlier.made / study
    for run in ("flat-s0", "deep-s0"):
        status = json.loads((after / "runs" / run / "status.json").read_text())
        assert status["status"] == "finished"
    check_resumed(after / "runs" / "deep-s0", before / "runs" / "deep-s0")
    assert contents(after / "runs" / "flat-s0") == contents(before / "runs" / "flat-s0")
    assert {file.name for file in (after / "logs").iterdir()} == {"deep-s0.log"}
    assert (after / "study.json").read_bytes() == (before / "study.json").read_bytes()


def test_the_run_of_a_study_that_was_stopped_ends_like_the_others(earlier):
    deep = Path("study") / "runs" / "deep-s0"
    after, before = earlier.used / "stopped" / deep, earlier.made / "finished" / deep
    earlier.check_same_run(after, before)
    scores = [earlier.read(run / "analysis" / "scores.json") for run in (after, before)]
    for values in scores:
        if not earlier.same_machine:
            del values["model"]["weights"]  # a digest of them
    earlier.check_same(*scores)


def test_data_prepared_today_are_the_same(earlier, today):
    for name in ("train-00000.npy", "validation-00000.npy", "tokenizer.json"):
        prepared = (today / "data" / name).read_bytes()
        assert prepared == (earlier.made / "data" / name).read_bytes(), name
    fingerprints = {
        json.loads((folder / "data" / "manifest.json").read_text())["fingerprint"]
        for folder in (today, earlier.made)
    }
    assert len(fingerprints) == 1


@pytest.mark.parametrize("model", records.MODELS)
def test_a_run_of_today_has_the_same_numbers_and_names(earlier, today, model):
    new, old = today / "finished" / model, earlier.made / "finished" / model
    earlier.check_same_run(new, old)
    assert earlier.read(new / "config.json") == earlier.read(old / "config.json")
    manifests = [json.loads((run / "manifest.json").read_text()) for run in (new, old)]
    for name in ("identity", "identity_fields", "parameters", "flops_per_token"):
        assert manifests[0][name] == manifests[1][name], name
    assert run_files(new) - earlier.added == run_files(old)


def run_files(run: Path) -> set[str]:
    """What lies in the folder of a run, without what the baselines leave out or add."""
    left_out = {"analysis", "checkpoints", "digests.json", "tensorboard"}
    return {path.name for path in run.iterdir()} - left_out
