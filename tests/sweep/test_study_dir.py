"""Whose directory is a study's, and where are its runs?"""

import pytest
import study_dirs
from etils import epath

from sparsecod_jax.errors import ConfigError
from sparsecod_jax.files import read_record, write_json, write_record
from sparsecod_jax.sweep.study import expand
from sparsecod_jax.sweep.study_dir import StudyDir, begin, locate

RUNS = expand(study_dirs.STUDY)
SPEC = "configs/sweeps/made_up.py:nano"


@pytest.fixture
def directory(tmp_path):
    made = StudyDir(epath.Path(tmp_path) / "studies" / "a")
    made.path.mkdir(parents=True)
    return made


def _locate(directory, spec=SPEC):
    return {name: str(place.path) for name, place in locate(directory, spec, study_dirs.STUDY, RUNS).items()}


@pytest.mark.parametrize("name", ["notes.txt", "study.json", "runs/flat-s0/config.json"])
def test_a_folder_with_somebody_elses_files_is_refused(directory, name):
    file = directory.path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text('{"study": "of bees"}')
    with pytest.raises(ConfigError, match=r"/a holds files but not a study: choose another --workdir, a folder that is new or empty"):
        _locate(directory)


def test_what_a_launcher_compiled_before_the_study_began_is_ours(directory):
    (directory.path / "plans").mkdir()
    assert len(_locate(directory)) == len(RUNS)


@pytest.mark.parametrize("spec", ["./configs/sweeps/made_up.py:nano", "/elsewhere/made_up.py:nano"])
def test_a_study_that_is_spelled_otherwise_is_the_same(directory, spec):
    begin(directory, SPEC, study_dirs.STUDY, RUNS)
    assert _locate(directory, spec) == _locate(directory)


def test_a_study_of_an_earlier_version_goes_on(directory):
    places = begin(directory, SPEC, study_dirs.STUDY, RUNS)
    write_json(directory.described, read_record(directory.described))
    assert begin(directory, SPEC, study_dirs.STUDY, RUNS) == places


def test_a_study_that_was_changed_is_named(directory):
    begin(directory, SPEC, study_dirs.STUDY, RUNS)
    directory.described.write_text(directory.described.read_text().replace("runs/flat-s0", "runs/flat-s1"))
    with pytest.raises(ConfigError, match=r"study\.json was changed after it was written: restore it from a copy"):
        _locate(directory)


@pytest.mark.parametrize("place", ["../../../elsewhere", "/elsewhere", ".."])
def test_runs_lie_in_this_study_or_in_one_beside_it(directory, place):
    begin(directory, SPEC, study_dirs.STUDY, RUNS)
    described = read_record(directory.described)
    described["places"]["flat-s0"] = place
    write_record(directory.described, described)
    with pytest.raises(ConfigError, match=r"study\.json places a run at .*, outside of the studies here: restore it from a copy"):
        _locate(directory)


def test_runs_of_a_study_beside_this_one_are_shared_and_what_is_no_study_is_named_and_left_out(directory, capsys):
    beside = StudyDir(directory.path.parent / "b")
    beside.path.mkdir()
    shared = begin(beside, SPEC, study_dirs.STUDY, RUNS)
    strays = {"bees": '{"study": "of bees"}', "list": "[]", "broken": "{", "runs": '{"runs": [], "places": 3}'}
    for name, content in strays.items():
        (directory.path.parent / name).mkdir()
        (directory.path.parent / name / "study.json").write_text(content)
    assert _locate(directory) == {name: str(place.path) for name, place in shared.items()}
    said = capsys.readouterr().out
    assert all(f"/studies/{name}/study.json is left out (" in said for name in strays)
