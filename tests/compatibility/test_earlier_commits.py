"""Can today's code resume, score, export and report what earlier commits wrote, to the same numbers?

data/COMMIT holds what the code of that commit made; `make_baselines` has its contents.

Which comparisons are exact: names of files, fields, metrics and arrays; identities; integers (steps,
tokens, digests of batches, selected experts); sequences that are scored; files that must stay as
they are; exported weights, which are copied and not computed. A restored checkpoint is exact as well,
since restoring it compares the digests in it. All this holds on any machine.

Other numbers are results of floating-point operations, which another CPU may order otherwise. Where
compiler and CPU are those of the baselines (`made_with.json`), they and the digests of the final
checkpoint must be equal bit for bit. Elsewhere they agree to TOLERANCE, about ten times what it made
of a difference to compile for processors without AVX.
"""

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from tests.compatibility import records

ROOT = Path(__file__).resolve().parents[2]
COMMITS = sorted(folder.name for folder in records.DATA.iterdir())
TOLERANCE = 1e-4  # relative, and as a fraction of the largest number in an array

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
    def same_machine(self) -> bool:
        """Whether results here must be those of the baselines in the last bit."""
        made_with = json.loads((self.made / "made_with.json").read_text())
        return records.machine().items() <= made_with.items()

    def log(self, name: str) -> str:
        return (self.used / f"{name}.log").read_text()


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


def train(model: str, workdir: str) -> list[str]:
    """The words that train a model alone, in a process that has used jax before."""
    words = [word.format(model=model) for word in records.TRAIN]
    return [*words, "--process_count=1", f"--workdir={workdir}"]


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
    shutil.copytree(used / "finished" / "dense", used / "unscored")
    shutil.rmtree(used / "unscored" / "analysis")
    exported = ["--workdir=finished/dense", "--out=exported"]
    imported = ["--hf=finished/export", "--workdir=imported"]
    commands = {
        "resume-dense": train("dense", "stopped/dense"),
        "resume-moe": train("moe", "stopped/moe"),
        "finished": train("dense", "finished/dense"),
        "analyze": [*records.SCORE, "--workdir=unscored"],
        "analyze-again": [*records.SCORE, "--workdir=finished/dense"],
        "export": ["export", *exported],
        "import": ["import", *imported],
        "report-run": ["report", "--workdir=finished/moe"],
        "report-study": ["report", "--workdir=finished/study"],
        "sweep": ["sweep", "--sweep=study.py:nano", "--workdir=stopped/study"],
    }
    run(used, caches, commands)
    return Earlier(made, used)


@pytest.fixture(scope="module")
def today(tmp_path_factory, caches) -> Path:
    """A folder in which today's code has made everything by itself."""
    folder = tmp_path_factory.mktemp("today")
    newest = records.DATA / COMMITS[0]
    shutil.copytree(newest / "corpus", folder / "corpus")
    shutil.copy(newest / "tiny.py", folder)
    commands = {
        "data": list(records.PREPARE),
        "dense": train("dense", "finished/dense"),
        "moe": train("moe", "finished/moe"),
    }
    run(folder, caches, commands)
    return folder


def check_equal(actual: Any, expected: Any, *, exactly: bool, name: str = "") -> None:
    """Compares nested values; floating-point numbers to TOLERANCE unless `exactly`."""
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys(), name
        for key, value in expected.items():
            check_equal(actual[key], value, exactly=exactly, name=f"{name}/{key}")
    elif isinstance(expected, list) and not _are_numbers(expected):
        assert len(actual) == len(expected), name
        for index, value in enumerate(expected):
            check_equal(actual[index], value, exactly=exactly, name=f"{name}/{index}")
    elif exactly or not _are_numbers(expected):
        assert actual == expected, name
    else:
        _check_close(_flat(actual), _flat(expected), name)


def _are_numbers(value: Any) -> bool:
    """Whether a value is a floating-point number, or a list with one."""
    return isinstance(value, float) or (
        isinstance(value, list) and any(isinstance(item, float) for item in value)
    )


def _flat(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _check_close(actual: list[Any], expected: list[Any], name: str) -> None:
    assert len(actual) == len(expected), name
    numbers = [abs(value) for value in expected if value is not None]
    absolute = TOLERANCE * max(numbers)
    for one, other in zip(actual, expected, strict=True):
        if other is None:
            assert one is None, name
        else:
            assert math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=absolute), name


def check_same_run(actual: Path, expected: Path, *, exactly: bool) -> None:
    """Compares two finished runs by the numbers of each step, the end, and the last checkpoint."""
    metrics = records.read_metrics(actual)
    check_equal(metrics, records.read_metrics(expected), exactly=exactly)
    final = records.read_final(actual)
    check_equal(final, records.read_final(expected), exactly=exactly)
    digests = records.read_digests(actual, records.STEPS)
    earlier = _final_digests(expected)
    assert digests.keys() == earlier.keys()
    if exactly:
        assert digests == earlier


def _final_digests(run: Path) -> dict[str, list[int]]:
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


@pytest.mark.parametrize("model", records.MODELS)
def test_a_stopped_run_resumes_from_its_checkpoint(earlier, model):
    stopped = earlier.made / "stopped" / model
    (step,) = (int(folder.name) for folder in (stopped / "checkpoints").iterdir())
    run = earlier.used / "stopped" / model
    assert f"restored step {step}\n" in earlier.log(f"resume-{model}")
    assert not (run / "quarantine").exists()
    assert {file.name for file in (run / "attempts").iterdir()} == {
        "0001.json",
        "0002.json",
    }


@pytest.mark.parametrize("model", records.MODELS)
def test_a_resumed_run_ends_like_one_that_was_not_stopped(earlier, model):
    resumed = earlier.used / "stopped" / model
    finished = earlier.made / "finished" / model
    check_same_run(resumed, finished, exactly=earlier.same_machine)


@pytest.mark.parametrize("model", records.MODELS)
def test_lines_before_the_checkpoint_stay_as_they_were(earlier, model):
    stopped = earlier.made / "stopped" / model
    (step,) = (int(folder.name) for folder in (stopped / "checkpoints").iterdir())
    before = (stopped / "metrics.jsonl").read_bytes().splitlines()
    after = (earlier.used / "stopped" / model / "metrics.jsonl").read_bytes()
    assert after.splitlines()[:step] == before[:step]


def test_a_finished_run_is_recognized_and_left_alone(earlier):
    assert "is already finished" in earlier.log("finished")
    printed = json.loads(earlier.log("finished").splitlines()[-1])
    before = earlier.made / "finished" / "dense"
    final = json.loads((before / "final.json").read_text())
    final.pop("checksum", None)
    assert printed == final
    after = contents(earlier.used / "finished" / "dense")
    changed = {
        name for name, content in contents(before).items() if after[name] != content
    }
    assert changed <= {"status.json"}
    assert set(after) == set(contents(before))


def test_scores_of_an_earlier_model_are_the_same(earlier):
    before = earlier.made / "finished" / "dense" / "analysis"
    after = earlier.used / "unscored" / "analysis"
    assert (after / "tokens.npy").read_bytes() == (before / "tokens.npy").read_bytes()
    expected = json.loads((before / "scores.json").read_text())
    actual = json.loads((after / "scores.json").read_text())
    for scores in (expected, actual):
        scores.pop("checksum", None)
    check_equal(actual, expected, exactly=earlier.same_machine)


def test_scores_that_are_there_are_kept(earlier):
    path = "finished/dense/analysis"
    assert contents(earlier.used / path) == contents(earlier.made / path)


def test_an_export_has_the_same_weights_and_settings(earlier):
    before, after = earlier.made / "finished" / "export", earlier.used / "exported"
    written = contents(after)
    for name, content in contents(before).items():
        if name not in ("README.md", "digests.json"):
            assert written[name] == content, name
    assert written.keys() == contents(before).keys()


def test_an_earlier_export_is_imported_with_the_same_weights(earlier):
    trained = _final_digests(earlier.made / "finished" / "dense")
    checkpoints = earlier.used / "imported" / "checkpoints"
    (step,) = (int(folder.name) for folder in checkpoints.iterdir())
    imported = records.read_digests(earlier.used / "imported", step)
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
    assert earlier.log("sweep").splitlines()[-2:] == [
        "flat-s0  finished",
        "deep-s0  finished",
    ]
    assert contents(after / "runs" / "flat-s0") == contents(before / "runs" / "flat-s0")
    assert (after / "study.json").read_bytes() == (before / "study.json").read_bytes()
    assert {file.name for file in (after / "logs").iterdir()} == {"deep-s0.log"}
    assert "restored step 4\n" in (after / "logs" / "deep-s0.log").read_text()


def test_the_run_of_a_study_that_was_stopped_ends_like_the_others(earlier):
    deep = Path("study") / "runs" / "deep-s0"
    exactly = earlier.same_machine
    after, before = earlier.used / "stopped" / deep, earlier.made / "finished" / deep
    check_same_run(after, before, exactly=exactly)
    actual, expected = (
        json.loads((run / "analysis" / "scores.json").read_text())
        for run in (after, before)
    )
    assert actual.keys() == expected.keys()
    check_equal(actual["usefulness"], expected["usefulness"], exactly=exactly)


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
    check_same_run(new, old, exactly=earlier.same_machine)
    configs = [
        json.loads((run / "config.json").read_text()) | {"checksum": None}
        for run in (new, old)
    ]
    assert configs[0] == configs[1]
    manifests = [json.loads((run / "manifest.json").read_text()) for run in (new, old)]
    for name in ("identity", "identity_fields", "parameters", "flops_per_token"):
        assert manifests[0][name] == manifests[1][name], name
    expected = records.file_names(old) - {"digests.json"}
    actual = records.file_names(new)
    missing = {name for name in expected if not name.startswith("analysis/")} - actual
    assert not missing


def test_exported_weights_have_the_names_that_other_libraries_read(earlier):
    tensors = load_file(earlier.used / "exported" / "model.safetensors")
    assert "model.embed_tokens.weight" in tensors
    assert "lm_head.weight" in tensors
