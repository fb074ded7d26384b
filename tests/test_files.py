"""Files are whole or absent, made once, and found where the user meant them; in a bucket: test_gcs.py."""

import concurrent.futures
import importlib.util
import json
import sys
import threading

import pytest
from etils import epath

from sparsecod_jax import files
from sparsecod_jax.errors import ConfigError


@pytest.fixture
def folder(tmp_path):
    return epath.Path(tmp_path)


def test_readers_never_see_half_a_file(folder):
    path, values = folder / "status.json", [{"value": [number] * 20000} for number in (0, 1)]
    files.write_json(path, values[0])
    stop = threading.Event()

    def keep_writing():
        while not stop.is_set():
            for value in values:
                files.write_json(path, value)

    writer = threading.Thread(target=keep_writing)
    writer.start()
    try:
        seen = [json.loads(path.read_text()) for _ in range(100)]
    finally:
        stop.set()
        writer.join()
    assert all(value in values for value in seen)


def test_a_failed_or_interrupted_write_leaves_the_old_file(folder):
    path = folder / "final.json"
    files.write_json(path, {"loss": 1.5})
    with pytest.raises(TypeError, match="not JSON serializable"):
        files.write_json(path, {"loss": object()})
    (folder / "final.json.partial").write_text('{"loss": 2.')
    assert files.read_json(path) == {"loss": 1.5}
    files.write_json(path, {"loss": 2.5})
    assert files.read_json(path) == {"loss": 2.5}
    assert [path.name for path in folder.iterdir()] == ["final.json"]


def test_a_damaged_file_is_named(folder):
    (folder / "config.json").write_text('{"seed": ')
    with pytest.raises(ConfigError, match=r"/config\.json is not JSON .*: restore it from a copy, or start in another --workdir"):
        files.read_json(folder / "config.json")


def test_one_of_many_creates_a_file(folder):
    def create(number):
        try:
            files.create(folder / "0001.json", b"%d" % number)
        except FileExistsError:
            return None
        return number

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        (winner,) = [number for number in pool.map(create, range(8)) if number is not None]
    assert (folder / "0001.json").read_bytes() == b"%d" % winner


def test_a_folder_moves_into_one_that_is_made_for_it(folder):
    (folder / "20").mkdir()
    (folder / "20" / "array").write_text("bits")
    files.move(folder / "20", folder / "quarantine" / "20-0")
    assert (folder / "quarantine" / "20-0" / "array").read_text() == "bits"
    assert not (folder / "20").exists()


def test_a_local_mirror_is_the_place_itself(folder):
    mirror = files.Mirror(folder)
    (mirror.path / "metrics.jsonl").write_text("{}\n")
    mirror.upload()
    mirror.close()
    assert (folder / "metrics.jsonl").read_text() == "{}\n"


def test_paths_become_absolute(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert files.absolute("runs/../run") == folder / "run"
    assert files.absolute(folder) == folder
    assert not files.is_remote(folder)


@pytest.mark.skipif(importlib.util.find_spec("gcsfs") is None, reason="gcsfs is not installed")
def test_a_place_in_a_bucket():
    place = files.absolute("gs://bucket/runs/a")
    assert (str(place), str(files.absolute(place)), place.name) == ("gs://bucket/runs/a", "gs://bucket/runs/a", "a")
    assert files.is_remote(place / "config.json")


@pytest.mark.parametrize("place", ["s3://bucket/run", "hf://datasets/x", "https://host/run", "GS://bucket/run", "gs://"])
def test_other_stores_are_refused(place):
    with pytest.raises(ConfigError, match=rf"^{place} is neither .*: use a local path or gs://BUCKET/NAME"):
        files.absolute(place)


def test_a_bucket_needs_gcsfs(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # as where it is not installed
    with pytest.raises(ConfigError, match=r"^gs://bucket/run can't be reached without gcsfs: pip install 'sparsecod-jax\[gcs\]'$"):
        files.absolute("gs://bucket/run")


def test_what_json_has_no_word_for_becomes_null():
    assert files.finite({"a": [1.0, float("nan"), (float("inf"), "nan", None)], "b": {"c": -0.5, "d": 3}}) == {
        "a": [1.0, None, [None, "nan", None]],
        "b": {"c": -0.5, "d": 3},
    }


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path):
    with files.new_folder(epath.Path(tmp_path / "a" / "new")) as folder:
        (folder / "file").write_text("content")
        assert not (tmp_path / "a" / "new").exists()
    assert (tmp_path / "a" / "new" / "file").read_text() == "content"
    with pytest.raises(FileNotFoundError), files.new_folder(epath.Path(tmp_path / "other")) as folder:
        (folder / "absent" / "file").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["new"]
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"can't be made .*: choose another place"), files.new_folder(epath.Path(tmp_path / "file" / "x")):
        pass


def test_an_empty_path_is_refused():
    with pytest.raises(ConfigError, match="a path is empty: name a place"):
        files.absolute("")
