"""A study is known by what it says, and studies beside it that can't be read stop nothing."""

import json
import os
from pathlib import Path

import pytest

from sparsecod_jax.errors import ConfigError
from sparsecod_jax.storage import records
from sparsecod_jax.study.run_local import sweep
from sparsecod_jax.study.study import expand, load
from sparsecod_jax.study.study_dir import StudyDir, begin, locate, read, remaining
from tests.support import study_files


@pytest.fixture
def spec(tokens, tmp_path):
    return study_files.write(tmp_path, tokens, study_files.TWO)


def _begun(folder: Path, spec: str) -> StudyDir:
    directory, study = StudyDir(folder), load(spec)  # pyright: ignore[reportArgumentType]
    directory.path.mkdir(parents=True)
    begin(directory, spec, study, expand(study))
    return directory


def test_a_study_spelled_otherwise_is_the_same(spec, tmp_path):
    directory = _begun(tmp_path / "studies" / "a", spec)
    file = os.path.relpath(spec)
    for other in (file, f"./{file}", f"{tmp_path}/../{tmp_path.name}/study.py:nano"):
        study = load(other)
        assert set(locate(directory, study, expand(study))) == {"flat-s0", "deep-s0"}


def test_studies_beside_it_that_can_not_be_read_are_named_and_left_out(
    spec, tmp_path, capsys
):
    first = _begun(tmp_path / "studies" / "a", spec)
    for name, content in {
        "b": "{}",
        "c": "[]",
        "d": "",
        "e": '{"runs": {"x": 3}}',
        "f": "\x00",
    }.items():
        (tmp_path / "studies" / name).mkdir()
        (tmp_path / "studies" / name / "study.json").write_text(content)
    (tmp_path / "studies" / "g").mkdir()
    os.mkfifo(tmp_path / "studies" / "g" / "study.json")
    second = _begun(tmp_path / "studies" / "z", spec)
    assert read(second)[1]["flat-s0"] == first.run("flat-s0")
    said = capsys.readouterr().out.splitlines()
    assert [line.split(" is left out")[0][-1] for line in said] == list("bcdefg")


def test_another_study_and_a_changed_record_are_refused(spec, tokens, tmp_path):
    directory = _begun(tmp_path / "studies" / "a", spec)
    (tmp_path / "other").mkdir()
    other = load(
        study_files.write(
            tmp_path / "other", tokens, '{"shallow": {"model.n_layers": 2}}'
        )
    )
    with pytest.raises(ConfigError, match=r"holds another study \(arms, runs differ\)"):
        locate(directory, other, expand(other))
    directory.described.write_text(
        directory.described.read_text().replace("Why?", "Who?")
    )
    with pytest.raises(ConfigError, match="was changed after it was written"):
        locate(directory, load(spec), expand(load(spec)))


def test_a_study_of_an_earlier_version_goes_on(spec, tmp_path):
    directory = _begun(tmp_path / "studies" / "a", spec)
    described = records.read_record(directory.described)
    records.write_json(directory.described, described)  # without a checksum
    assert set(locate(directory, load(spec), expand(load(spec)))) == {
        "flat-s0",
        "deep-s0",
    }


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"sequences": 3}', '{"sequences": {"profile": "\x00']
)
def test_scores_that_can_not_be_read_are_left_to_analyze(tokens, tmp_path, content):
    spec = study_files.write(
        tmp_path, tokens, study_files.TWO, analyze={"scores": "profile"}
    )
    directory, study = _begun(tmp_path / "studies" / "a", spec), load(spec)
    run = expand(study)[0]
    place = directory.run(run.name)
    place.analysis.path.mkdir(parents=True)
    place.analysis.scores.write_text(content)
    assert [verb[0] for verb in remaining(study, run, place)] == ["train", "analyze"]


@pytest.mark.faults
def test_a_damaged_run_does_not_stop_the_others(spec, tmp_path):
    directory = _begun(tmp_path / "studies" / "a", spec)
    place = directory.run("flat-s0")
    place.path.mkdir(parents=True)
    place.manifest.write_text("{")
    place.status.write_text("[]")
    with pytest.raises(Exception, match=r"1 of 2 runs did not finish \(flat-s0\)"):
        sweep(spec, str(directory.path))
    assert json.loads(directory.run("deep-s0").final.read_text())["steps"] == 6


@pytest.mark.faults
def test_runs_do_not_import_the_working_folder(spec, tmp_path, monkeypatch):
    (tmp_path / "random.py").write_text("raise SystemExit('shadowed')\n")
    text = Path(spec.split(":")[0]).read_text()
    Path(spec.split(":")[0]).write_text(
        text.replace("configs/smoke.py", str(Path("configs/smoke.py").resolve()))
    )
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    monkeypatch.chdir(tmp_path)
    assert sweep(spec, "studies/a") == "flat-s0  finished\ndeep-s0  finished"


@pytest.mark.parametrize("name", ["notes.txt", "runs/flat-s0/config.json"])
def test_a_folder_with_somebody_elses_files_is_refused(spec, tmp_path, name):
    directory, study = StudyDir(tmp_path / "a"), load(spec)  # pyright: ignore[reportArgumentType]
    (tmp_path / "a" / name).parent.mkdir(parents=True)
    (tmp_path / "a" / name).write_text("of bees")
    with pytest.raises(
        ConfigError,
        match=r"/a holds files but not a study: choose another --workdir, a folder that is new or empty",
    ):
        locate(directory, study, expand(study))


def test_what_a_launcher_compiled_before_the_study_began_is_ours(spec, tmp_path):
    (tmp_path / "a" / "plans").mkdir(parents=True)
    directory, study = StudyDir(tmp_path / "a"), load(spec)  # pyright: ignore[reportArgumentType]
    assert set(locate(directory, study, expand(study))) == {"flat-s0", "deep-s0"}
