"""A study is known by what it declares; unreadable studies beside it stop nothing."""

import dataclasses
import json
import os
from pathlib import Path

import pytest

from sparsecod_jax.errors import ConfigError
from sparsecod_jax.storage import records
from sparsecod_jax.study.run_local import sweep
from sparsecod_jax.study.study import Claim, Study, expand, load
from sparsecod_jax.study.study_dir import StudyDir, begin, locate, read, remaining
from tests.support import study_dirs, study_files


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
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" is left out")[0][-1] for line in lines] == list("bcdefg")


def _recorded(folder: Path, study: Study) -> StudyDir:
    directory = StudyDir(folder)  # pyright: ignore[reportArgumentType]
    directory.path.mkdir(parents=True)
    begin(directory, "study.py:nano", study, expand(study))
    return directory


@pytest.mark.parametrize(
    "rewording",
    [
        {"question": "Is depth worth it?"},
        {"held_fixed": ("width",)},
        {"not_testable": ()},
        {"mechanism": {"sum of rate x decay": "derived/decay"}},
        {"config": "./configs/smoke.py:nano"},
        {
            "claims": tuple(
                dataclasses.replace(claim, text=f"now {claim.text}")
                for claim in reversed(study_dirs.STUDY.claims)
            )
        },
    ],
    ids=lambda rewording: next(iter(rewording)),
)
def test_a_study_in_other_words_is_the_same_and_keeps_its_record(tmp_path, rewording):
    directory = _recorded(tmp_path / "a", study_dirs.STUDY)
    before = directory.described.read_bytes()
    reworded = dataclasses.replace(study_dirs.STUDY, **rewording)
    runs = expand(reworded)
    assert set(begin(directory, "study.py:nano", reworded, runs)) == {
        run.name for run in runs
    }
    assert directory.described.read_bytes() == before


FIRST, *OTHERS = study_dirs.STUDY.claims


def _claims(**changes) -> tuple[Claim, ...]:
    return (dataclasses.replace(FIRST, **changes), *OTHERS)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"claims": tuple(OTHERS)}, "claims"),
        ({"claims": _claims(metric="last/variance/residual/0")}, "claims"),
        ({"claims": _claims(greater="flat", than="deep")}, "claims"),
        ({"claims": _claims(smallest=1.2)}, "claims"),
        ({"claims": _claims(ratio=False)}, "claims"),
        ({"mechanism": {"learning rate x decay": "derived/growth"}}, "mechanism"),
        ({"published": ()}, "published"),
        ({"analyze": {"sequences": 5}}, "analyze"),
        ({"seeds": (0, 1)}, "runs, seeds"),
        ({"changes": {"steps": 40}}, "changes, runs"),
        # The same runs, but declared otherwise.
        ({"changes": {"log.every": 3}}, "changes"),
        ({"config": "configs/smoke.py:mini"}, "runs"),
        ({"arms": study_dirs.STUDY.arms | {"wide": {"model.d_ff": 512}}}, "arms, runs"),
    ],
)
def test_a_study_that_was_changed_is_another_one(tmp_path, change, named):
    directory = _recorded(tmp_path / "a", study_dirs.STUDY)
    changed = dataclasses.replace(study_dirs.STUDY, **change)
    with pytest.raises(ConfigError, match=rf"another study \({named} differ\)"):
        locate(directory, changed, expand(changed))


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


def test_a_study_of_an_earlier_version_is_resumed(spec, tmp_path):
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
    run_dir = directory.run(run.name)
    run_dir.analysis.path.mkdir(parents=True)
    run_dir.analysis.scores.write_text(content)
    left = [subcommand for subcommand, *_ in remaining(study, run, run_dir)]
    assert left == ["train", "analyze"]


@pytest.mark.faults
def test_a_damaged_run_does_not_stop_the_others(spec, tmp_path):
    directory = _begun(tmp_path / "studies" / "a", spec)
    run_dir = directory.run("flat-s0")
    run_dir.path.mkdir(parents=True)
    run_dir.manifest.write_text("{")
    run_dir.status.write_text("[]")
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
    message = (
        "/a holds files but not a study:"
        " choose another --workdir, a folder that is new or empty"
    )
    with pytest.raises(ConfigError, match=message):
        locate(directory, study, expand(study))


def test_what_a_launcher_compiled_before_the_study_began_is_ours(spec, tmp_path):
    (tmp_path / "a" / "plans").mkdir(parents=True)
    directory, study = StudyDir(tmp_path / "a"), load(spec)  # pyright: ignore[reportArgumentType]
    assert set(locate(directory, study, expand(study))) == {"flat-s0", "deep-s0"}
