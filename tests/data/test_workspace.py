"""Only what `sparsecod data` provably made is taken over or removed, and only by name."""

import dataclasses
import os
from pathlib import Path

import pytest
from etils import epath

from sparsecod_jax.data import workspace
from sparsecod_jax.data.prepare import Request, prepare
from sparsecod_jax.errors import ConfigError, Fenced
from sparsecod_jax.storage.ownership import locked
from sparsecod_jax.storage.records import write_json
from sparsecod_jax.storage.unfinished import UNFINISHED


@pytest.fixture
def request_(tmp_path):
    (tmp_path / "text").mkdir()
    for number in range(8):
        (tmp_path / "text" / f"{number}.txt").write_text(
            f"document number {number}, and nothing else {number**5}"
        )
    return Request(str(tmp_path / "text"), "bytes", validation_fraction=0.4)


def contents(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


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
    place = tmp_path / "out" / name
    place.parent.mkdir(parents=True)
    place.mkdir() if name == "work" else place.write_text("mine")
    before = contents(tmp_path / "out")
    with pytest.raises(
        ConfigError, match=r"holds files but not an unfinished .* choose another --out"
    ) as caught:
        prepare(request_, str(tmp_path / "out"))
    assert "delete" not in str(caught.value)
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize(
    "record",
    [None, {"source": "x", "tokenizer": "bytes", "split_seed": 0}, ["no", "record"]],
)
def test_a_folder_work_over_finished_data_is_left_alone(request_, tmp_path, record):
    out = tmp_path / "out"
    manifest = prepare(request_, str(out))
    (out / "work").mkdir()
    for name in ("notes.txt", "batches.json", "00000.json"):
        (out / "work" / name).write_text("mine")
    if record is not None:
        write_json(epath.Path(out / "work" / "request.json"), record)
    before = contents(out)
    assert prepare(request_, str(out)) == manifest
    assert contents(out) == before


def test_a_run_is_never_taken_for_data(request_, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "manifest.json").write_text('{"identity_fields": {}}')
    (run / "config.json").write_text("{}")
    before = contents(run)
    with pytest.raises(
        ConfigError, match=r"can't be read as a manifest of data"
    ) as caught:
        prepare(request_, str(run))
    assert "delete" not in str(caught.value)
    assert contents(run) == before


def test_finished_work_is_removed_and_what_else_lies_there_stays(request_, tmp_path):
    out = tmp_path / "out"
    work = workspace.begin(
        epath.Path(out), dataclasses.asdict(request_), lambda before: None
    )
    (Path(work) / "notes.txt").write_text("mine")
    prepare(request_, str(out))
    assert contents(out / "work") == {"notes.txt": b"mine"}
    assert not (out / "begun.json").exists()


def test_what_a_killed_process_left_of_its_first_file_is_no_obstacle(
    request_, tmp_path
):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / f"{UNFINISHED}{'0' * 16}").write_text("{")
    prepare(request_, str(tmp_path / "out"))
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {
        "manifest.json",
        "tokenizer.json",
    }
    assert not list((tmp_path / "out").glob(f"{UNFINISHED}*"))


def test_work_of_an_earlier_version_goes_on(request_, tmp_path):
    """It had no begun.json, and no checksum."""
    out, old = tmp_path / "out", dataclasses.asdict(request_)
    for name in (
        "text_field",
        "split",
        "separator",
        "dedup",
        "max_documents",
        "max_tokens",
    ):
        del old[name]
    (out / "work").mkdir(parents=True)
    write_json(epath.Path(out / "work" / "request.json"), old)
    prepare(request_, str(out))
    assert not (out / "work").exists()
    with pytest.raises(ConfigError, match=r"another request .*split_seed"):
        prepare(dataclasses.replace(request_, split_seed=1), str(out))


def test_hashes_of_an_earlier_version_are_not_gone_on_with(request_, tmp_path):
    out, old = (
        tmp_path / "out",
        {
            "source": request_.source,
            "tokenizer": "bytes",
            "split_seed": 0,
            "validation_fraction": 0.4,
        },
    )
    (out / "work").mkdir(parents=True)
    write_json(epath.Path(out / "work" / "request.json"), old)
    (out / "work" / "00000.hashes.npy").write_bytes(b"of 5-grams")
    before = contents(out)
    with pytest.raises(
        ConfigError,
        match="was begun by an earlier version, whose unfinished work can't be used: choose another --out",
    ):
        prepare(request_, str(out))
    assert contents(out) == before


@pytest.mark.parametrize("name", ["file", "file/deep"])
def test_a_file_in_the_way_is_named(request_, tmp_path, name):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match=r"file.*choose another"):
        prepare(request_, str(tmp_path / name))
    assert (tmp_path / "file").read_text() == "mine"


def test_of_two_processes_one_makes_it(request_, tmp_path):
    out = epath.Path(tmp_path / "out")
    out.mkdir()
    with locked(out), pytest.raises(Fenced, match="another process is at work in"):
        prepare(request_, str(out))
    prepare(request_, str(out))


def test_work_that_is_a_link_is_not_followed(request_, tmp_path):
    out = tmp_path / "out"
    manifest = prepare(request_, str(out))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "batches.json").write_text("mine")
    os.symlink(tmp_path / "elsewhere", out / "work")
    assert prepare(request_, str(out)) == manifest
    assert (tmp_path / "elsewhere" / "batches.json").read_text() == "mine"
