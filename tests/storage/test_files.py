"""Files are whole or absent, made once, and found where the user meant them.

For files in a bucket see test_gcs.py.
"""

import concurrent.futures
import importlib.util
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from etils import epath

from sparsecod_jax.errors import ConfigError, Fenced
from sparsecod_jax.storage import files, records, unfinished


@pytest.fixture
def folder(tmp_path):
    return epath.Path(tmp_path)


def test_readers_never_see_half_a_file(folder):
    path = folder / "status.json"
    values = [{"value": [number] * 20000} for number in (0, 1)]
    records.write_json(path, values[0])
    stop = threading.Event()

    def keep_writing():
        while not stop.is_set():
            for value in values:
                records.write_json(path, value)

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
    records.write_json(path, {"loss": 1.5})
    with pytest.raises(TypeError, match="not JSON serializable"):
        records.write_json(path, {"loss": object()})
    assert records.read_json(path) == {"loss": 1.5}
    records.write_json(path, {"loss": 2.5})
    assert records.read_json(path) == {"loss": 2.5}
    assert [path.name for path in folder.iterdir()] == ["final.json"]


def test_one_of_many_creates_a_file(folder):
    def create(number):
        try:
            files.create(folder / "0001.json", b"%d" % number)
        except FileExistsError:
            return None
        return number

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        (winner,) = [
            number for number in pool.map(create, range(8)) if number is not None
        ]
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


@pytest.mark.skipif(
    importlib.util.find_spec("gcsfs") is None, reason="gcsfs is not installed"
)
def test_a_place_in_a_bucket():
    path = files.absolute("gs://bucket/runs/a")
    assert str(path) == "gs://bucket/runs/a"
    assert files.absolute(path) == path
    assert path.name == "a"
    assert files.is_remote(path / "config.json")


@pytest.mark.parametrize(
    "place",
    [
        "s3://bucket/run",
        "hf://datasets/x",
        "https://host/run",
        "GS://bucket/run",
        "gs://",
    ],
)
def test_other_stores_are_refused(place):
    sentence = f"^{place} is neither .*: use a local path or gs://BUCKET/NAME"
    with pytest.raises(ConfigError, match=sentence):
        files.absolute(place)


def test_a_bucket_needs_gcsfs(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # as where it is not installed
    problem = "^gs://bucket/run can't be reached without gcsfs"
    remedy = r"pip install 'sparsecod-jax\[gcs\]'$"
    with pytest.raises(ConfigError, match=f"{problem}: {remedy}"):
        files.absolute("gs://bucket/run")


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path):
    with files.new_folder(epath.Path(tmp_path / "a" / "new")) as folder:
        (folder / "file").write_text("content")
        assert not (tmp_path / "a" / "new").exists()
    assert (tmp_path / "a" / "new" / "file").read_text() == "content"
    with (
        pytest.raises(FileNotFoundError),
        files.new_folder(epath.Path(tmp_path / "other")) as folder,
    ):
        (folder / "absent" / "file").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["new"]
    (tmp_path / "file").touch()
    with (
        pytest.raises(ConfigError, match=r"can't be made .*: choose another place"),
        files.new_folder(epath.Path(tmp_path / "file" / "x")),
    ):
        pass


def test_an_empty_path_is_refused():
    with pytest.raises(ConfigError, match="a path is empty: name a place"):
        files.absolute("")


WRITE = """
import sys, time
from etils import epath
from sparsecod_jax.storage import files, unfinished

target = epath.Path(sys.argv[1])
if sys.argv[2] == "folder":
    with files.new_folder(target) as beside:
        (beside / "weights").write_bytes(b"half")
        print("half", flush=True)
        time.sleep(600)
else:
    with unfinished.unfinished_file(target.parent) as (beside, descriptor):
        print("half", flush=True)
        time.sleep(600)
"""


@pytest.fixture(params=["file", "folder"])
def half_written(request, tmp_path):
    """A process in the middle of making tmp_path/made."""
    command = [sys.executable, "-c", WRITE, str(tmp_path / "made"), request.param]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "half\n"
    yield process
    process.kill()
    process.wait()


def test_what_a_killed_process_left_goes_and_what_a_live_one_writes_stays(
    folder, half_written
):
    files.write(folder / "other", b"")
    (unfinished,) = [path for path in folder.iterdir() if path.name != "other"]
    half_written.send_signal(signal.SIGKILL)
    half_written.wait()
    assert unfinished.exists()
    with files.new_folder(folder / "new"):
        pass
    assert sorted(path.name for path in folder.iterdir()) == ["new", "other"]


def test_files_that_only_look_unfinished_are_left_alone(folder):
    names = [
        ".sparsecod-notes",
        ".sparsecod-00000000-0123456789abcdef",
        "final.json.partial",
    ]
    for name in names:
        (folder / name).write_text("the user's")
    os.symlink(folder / names[0], folder / f"{unfinished.UNFINISHED}0")
    files.write(folder / "other", b"")
    expected = {*names, f"{unfinished.UNFINISHED}0", "other"}
    assert {path.name for path in folder.iterdir()} == expected


def test_a_planted_link_is_replaced_and_never_followed(folder):
    (folder / "precious").write_text("mine")
    for name in ("report.html", "report.html.partial", ".report.html.partial"):
        os.symlink(folder / "precious", folder / name)
    files.write(folder / "report.html", b"<html>")
    assert (folder / "precious").read_text() == "mine"
    assert (folder / "report.html").read_bytes() == b"<html>"
    assert not Path(folder / "report.html").is_symlink()
    os.symlink(folder / "absent", folder / "0001.json")
    with pytest.raises(FileExistsError):
        files.create(folder / "0001.json", b"{}")
    assert not (folder / "absent").exists()


def test_a_log_is_appended_to_and_never_through_a_link(folder):
    for line in (b"one\n", b"two\n"):
        with files.open_log(folder / "run.log") as log:
            log.write(line)
    assert (folder / "run.log").read_bytes() == b"one\ntwo\n"
    (folder / "precious").write_text("mine")
    os.symlink(folder / "precious", folder / "planted.log")
    with pytest.raises(
        ConfigError, match=r"planted\.log can't be written .*: choose another place"
    ):
        files.open_log(folder / "planted.log")
    assert (folder / "precious").read_text() == "mine"


def test_files_and_folders_have_the_users_permissions(folder):
    before = os.umask(0o027)
    try:
        files.write(folder / "written", b"")
        files.create(folder / "created", b"")
        with files.new_folder(folder / "new"):
            pass
    finally:
        os.umask(before)
    modes = [
        oct(stat.S_IMODE((folder / name).stat().mode))
        for name in ("written", "created", "new")
    ]
    assert modes == ["0o640", "0o640", "0o750"]


def test_the_loser_of_two_that_make_one_folder_is_told_and_changes_nothing(folder):
    def lose():
        with files.new_folder(folder / "made") as loser:
            (loser / "file").write_text("second")
            with files.new_folder(folder / "made") as winner:
                (winner / "file").write_text("first")

    with pytest.raises(
        Fenced,
        match=r"/made was made by another process meanwhile: it was left as it is$",
    ):
        lose()
    assert [path.name for path in folder.iterdir()] == ["made"]
    assert (folder / "made" / "file").read_text() == "first"


def _synced(monkeypatch, action) -> list[str]:
    """The names of what was forced to the disk, in order, with renames in between."""
    events, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(
        os,
        "fsync",
        lambda fd: (events.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd)),
    )
    monkeypatch.setattr(
        os, "replace", lambda *paths: (events.append("rename"), replace(*paths))
    )
    action()
    return [Path(event).name for event in events]


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="no /proc")
def test_bytes_are_on_the_disk_before_the_name_and_the_name_before_the_call_returns(
    folder, monkeypatch
):
    file, rename, parent = _synced(
        monkeypatch, lambda: files.write(folder / "status.json", b"{}")
    )
    assert file.startswith(unfinished.UNFINISHED)
    assert rename == "rename"
    assert parent == folder.name

    synced = _synced(monkeypatch, lambda: files.create(folder / "0001.json", b"{}"))
    assert synced == ["0001.json", folder.name]

    synced = _synced(monkeypatch, lambda: files.make_folder(folder / "a" / "b"))
    assert synced == ["a", folder.name]


def test_where_a_result_can_go_is_known_without_making_anything(folder):
    files.check_can_write(folder / "plan.json")
    (folder / "file").write_text("")
    files.check_can_write(folder / "file")
    sentences = {
        "": r"is a folder: name a file$",
        "absent/plan.json": r"/absent/plan\.json can't be written "
        r"\(No such file or directory\): choose another place$",
        "file/plan.json": r"/file is not a folder: "
        r"choose another place than .*/file/plan\.json$",
        "a" * 300: r"can't be written \(File name too long\): choose another place$",
    }
    for name, sentence in sentences.items():
        with pytest.raises(ConfigError, match=sentence):
            files.check_can_write(folder / name)
    assert [path.name for path in folder.iterdir()] == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_known_before(folder):
    folder.chmod(0o555)
    with pytest.raises(
        ConfigError,
        match=r" may not be written: choose another place than .*/plan\.json$",
    ):
        files.check_can_write(folder / "plan.json")


def test_home_and_paths_that_are_none(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    assert files.absolute("~/runs") == folder / "runs"
    problem = "^~nobody-of-that-name/runs begins with no user's home"
    remedy = r"name another place, or \./~nobody"
    with pytest.raises(ConfigError, match=f"{problem}: {remedy}"):
        files.absolute("~nobody-of-that-name/runs")
    problem = r"^'a\\x00b' holds a zero byte, which no file name may"
    with pytest.raises(ConfigError, match=problem):
        files.absolute("a\0b")
