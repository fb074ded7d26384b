"""Only what `sparsecod data` provably made is resumed or removed, and only by name."""

import dataclasses
import os
from pathlib import Path

import pytest
from etils import epath

from sparsecod_jax.data import workspace
from sparsecod_jax.data.prepare import Request, prepare
from sparsecod_jax.data.store import Manifest
from sparsecod_jax.errors import ConfigError, Fenced
from sparsecod_jax.storage.ownership import locked
from sparsecod_jax.storage.records import write_json
from sparsecod_jax.storage.unfinished import UNFINISHED


@pytest.fixture
def request_(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    for number in range(8):
        text = f"document number {number}, and nothing else {number**5}"
        (folder / f"{number}.txt").write_text(text)
    return Request(str(folder), "bytes", validation_fraction=0.4)


def make(request: Request, out: Path) -> Manifest:
    return prepare(request, str(out))


def contents(folder: Path) -> dict[str, bytes | None]:
    """The content of each file by name; None for folders."""
    found = {}
    for path in folder.rglob("*"):
        content = path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(folder))] = content
    return found


@pytest.mark.parametrize(
    "name",
    [
        "work/notes.txt",
        "work/batches.json",
        "notes.txt",
        "notes.txt~",
        "manifest.json.bak",
        "train-00000.npy",
        "work",
    ],
)
def test_a_folder_with_anything_else_is_refused_and_left_alone(
    request_, tmp_path, name
):
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    if name == "work":
        path.mkdir()
    else:
        path.write_text("mine")
    before = contents(tmp_path / "out")
    sentence = r"holds files but not an unfinished .* choose another --out"
    with pytest.raises(ConfigError, match=sentence) as caught:
        make(request_, tmp_path / "out")
    assert "delete" not in str(caught.value)
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize(
    "record",
    [None, {"source": "x", "tokenizer": "bytes", "split_seed": 0}, ["no", "record"]],
)
def test_a_folder_work_over_finished_data_is_left_alone(request_, tmp_path, record):
    out = tmp_path / "out"
    manifest = make(request_, out)
    (out / "work").mkdir()
    for name in ("notes.txt", "batches.json", "00000.json"):
        (out / "work" / name).write_text("mine")
    if record is not None:
        write_json(epath.Path(out / "work" / "request.json"), record)
    before = contents(out)
    assert make(request_, out) == manifest
    assert contents(out) == before


def test_a_run_is_never_taken_for_data(request_, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "manifest.json").write_text('{"identity_fields": {}}')
    (run / "config.json").write_text("{}")
    before = contents(run)
    sentence = r"can't be read as a manifest of data"
    with pytest.raises(ConfigError, match=sentence) as caught:
        make(request_, run)
    assert "delete" not in str(caught.value)
    assert contents(run) == before


def test_finished_work_is_removed_and_what_else_is_there_stays(request_, tmp_path):
    out = tmp_path / "out"
    values = dataclasses.asdict(request_)
    work = workspace.begin(epath.Path(out), values, lambda before: None)
    (Path(work) / "notes.txt").write_text("mine")
    make(request_, out)
    assert contents(out / "work") == {"notes.txt": b"mine"}
    assert not (out / "begun.json").exists()


def test_what_a_killed_process_left_of_its_first_file_is_no_obstacle(
    request_, tmp_path
):
    out = tmp_path / "out"
    out.mkdir()
    (out / f"{UNFINISHED}{'0' * 16}").write_text("{")
    make(request_, out)
    assert {"manifest.json", "tokenizer.json"} <= {path.name for path in out.iterdir()}
    assert not list(out.glob(f"{UNFINISHED}*"))


def test_work_of_an_earlier_version_is_resumed(request_, tmp_path):
    """It had no begun.json, no checksum, and fewer options."""
    out = tmp_path / "out"
    old = dataclasses.asdict(request_)
    for name in ("text_field", "split", "separator", "dedup"):
        del old[name]
    for name in ("max_documents", "max_tokens"):
        del old[name]
    (out / "work").mkdir(parents=True)
    write_json(epath.Path(out / "work" / "request.json"), old)
    make(request_, out)
    assert not (out / "work").exists()
    with pytest.raises(ConfigError, match=r"another request .*split_seed"):
        make(dataclasses.replace(request_, split_seed=1), out)


def test_hashes_of_an_earlier_version_are_not_used(request_, tmp_path):
    out = tmp_path / "out"
    old = {
        "source": request_.source,
        "tokenizer": "bytes",
        "split_seed": 0,
        "validation_fraction": 0.4,
    }
    (out / "work").mkdir(parents=True)
    write_json(epath.Path(out / "work" / "request.json"), old)
    (out / "work" / "00000.hashes.npy").write_bytes(b"of 5-grams")
    before = contents(out)
    sentence = "was begun by an earlier version, .* can't be used: choose another --out"
    with pytest.raises(ConfigError, match=sentence):
        make(request_, out)
    assert contents(out) == before


@pytest.mark.parametrize("name", ["file", "file/deep"])
def test_a_file_in_the_way_is_named(request_, tmp_path, name):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match=r"file.*choose another"):
        make(request_, tmp_path / name)
    assert (tmp_path / "file").read_text() == "mine"


def test_of_two_processes_one_makes_it(request_, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with (
        locked(epath.Path(out)),
        pytest.raises(Fenced, match="another process is at work in"),
    ):
        make(request_, out)
    make(request_, out)


def test_work_that_is_a_link_is_not_followed(request_, tmp_path):
    out = tmp_path / "out"
    manifest = make(request_, out)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "batches.json").write_text("mine")
    os.symlink(tmp_path / "elsewhere", out / "work")
    assert make(request_, out) == manifest
    assert (tmp_path / "elsewhere" / "batches.json").read_text() == "mine"
