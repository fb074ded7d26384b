"""The documents of a folder are read, and what is left out is named."""

import json
import os

import pytest

from sparsecod_jax.data.left_out import LeftOut
from sparsecod_jax.data.sources import documents
from sparsecod_jax.errors import ConfigError


def fill(folder, names):
    """Writes a file of each name, whose document is its name."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"text": name}) + "\n" if ".json" in name else name
        path.write_text(content)


def read(source, **options) -> tuple[list[str], dict[str, list[str]]]:
    """The documents, and what is left out by reason."""
    left_out = LeftOut()
    texts = list(documents(str(source), left_out=left_out, **options))
    record = left_out.record()
    return texts, {reason: sorted(record[reason]["examples"]) for reason in record}


def refusal(source, **options) -> str:
    with pytest.raises(ConfigError) as caught:
        list(documents(str(source), **options))
    return str(caught.value)


def test_a_snapshot_gives_its_training_split(tmp_path):
    train = ["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl"]
    test = ["data/test-00000-of-00001.jsonl"]
    validation = ["data/validation-00000-of-00001.jsonl"]
    about = ["LICENSE.txt", "README.md", "dataset_infos.json"]
    fill(tmp_path, [*train, *test, *validation, *about, "LICENSE"])
    texts, left = read(tmp_path)
    assert texts == train
    assert left == {
        "files of a kind that can't be read": ["LICENSE"],
        "files about the data": about,
        "files of the split test": test,
        "files of the split validation": validation,
    }
    assert read(tmp_path, split="test")[0] == test
    sentence = refusal(tmp_path, split="nowhere")
    assert "has no split nowhere but test, train, validation" in sentence


def test_the_readme_of_a_snapshot_gives_its_splits(tmp_path):
    pytest.importorskip("yaml")
    fill(tmp_path, ["a/part.jsonl", "b/part.jsonl", "c/part.jsonl"])
    files = "[{split: train, path: a/*}, {split: held, path: [b/part.jsonl]}]"
    configs = f"configs:\n- config_name: default\n  data_files: {files}\n"
    (tmp_path / "README.md").write_text(f"---\nlicense: mit\n{configs}---\n# Card\n")
    texts, left = read(tmp_path)
    assert texts == ["a/part.jsonl"]
    assert left["files of the split held"] == ["b/part.jsonl"]
    assert left["files of no split"] == ["c/part.jsonl"]
    assert read(tmp_path, split="held")[0] == ["b/part.jsonl"]
    (tmp_path / "README.md").write_text("---\n- [: &x\n---\n")
    assert len(read(tmp_path)[0]) == 3, "a README that can't be read gives none"


def test_hostile_front_matter_harms_nobody(tmp_path):
    pytest.importorskip("yaml")
    fill(tmp_path, ["a.jsonl"])
    bomb = "k0: &m0 {a: b}\n"
    for n in range(1, 12):
        merged = ", ".join([f"*m{n - 1}"] * 9)
        bomb += f"k{n}: &m{n} {{<<: [{merged}]}}\n"
    patterns = ", ".join(["x"] * 300)
    entries = ", ".join(["{split: train, path: *d}"] * 300)
    many = f"d: &d [{patterns}]\nconfigs:\n- data_files: [{entries}]\n"
    for front in (
        "x: !!bool maybe\n",
        "x: !!python/object/apply:os.getcwd []\n",
        bomb,
        "x: !!int y\n",
    ):
        (tmp_path / "README.md").write_text(f"---\n{front}---\n")
        assert read(tmp_path)[0] == ["a.jsonl"]
    (tmp_path / "README.md").write_text(f"---\n{many}---\n")
    assert "README.md gives more than 10,000 patterns" in refusal(tmp_path)


def test_reasons_are_printable_and_bounded(tmp_path):
    left_out = LeftOut()
    for number in range(200):
        left_out.add(f"files of the split \x1b[31m{number} {'x' * 1000}", "a")
    assert sum(left_out.counts.values()) == 200
    assert len(left_out.counts) <= 51
    assert all(line.isprintable() and len(line) < 200 for line in left_out.lines())


def test_names_of_c4_and_dolma(tmp_path):
    train = "c4-train.00000-of-00002.json"
    fill(tmp_path, [train, "c4-validation.00000-of-00001.json"])
    assert read(tmp_path)[0] == [train]
    fill(tmp_path / "dolma", ["cc_en_head-0000.json", "cc_en_head-0001.json"])
    assert len(read(tmp_path / "dolma")[0]) == 2


def test_a_folder_with_only_a_test_split_is_refused(tmp_path):
    fill(tmp_path, ["test-00000.jsonl"])
    assert "has no split train but test: choose one with --split" in refusal(tmp_path)
    assert read(tmp_path, split="test")[0] == ["test-00000.jsonl"]


def test_texts_that_are_called_by_a_split(tmp_path):
    fill(tmp_path, ["train.txt", "test.txt", "valid.txt"])
    assert read(tmp_path)[0] == ["train.txt"]
    fill(tmp_path / "code", ["test.py", "test_more.py", "a.py"])
    assert read(tmp_path / "code")[0] == ["a.py", "test.py", "test_more.py"]
    assert "does not say" in refusal(tmp_path / "code", split="test")


def test_hidden_files_are_left_out(tmp_path):
    hidden = ["._a.jsonl", ".git/b.txt", "__MACOSX/a.jsonl", ".DS_Store"]
    fill(tmp_path, ["a.jsonl", *hidden])
    texts, left = read(tmp_path)
    assert texts == ["a.jsonl"]
    assert left == {"hidden files": [".DS_Store", "._a.jsonl", ".git", "__MACOSX"]}


def test_links_of_a_folder_to_itself_are_not_followed(tmp_path):
    fill(tmp_path, ["a.txt", "deep/b.txt"])
    for name in ("one", "two", "deep/three"):
        os.symlink(tmp_path, tmp_path / name)
    os.symlink(tmp_path / "deep", tmp_path / "other")
    texts, left = read(tmp_path)
    assert texts == ["a.txt", "deep/b.txt"]
    reason = "folders that were seen under another name"
    assert left[reason] == ["deep/three", "one", "other", "two"]


def test_links_to_files_are_followed_and_dangling_ones_refused(tmp_path):
    fill(tmp_path / "blobs", ["x.txt"])
    (tmp_path / "snapshot").mkdir()
    os.symlink(tmp_path / "blobs" / "x.txt", tmp_path / "snapshot" / "a.txt")
    assert read(tmp_path / "snapshot")[0] == ["x.txt"]
    os.symlink(tmp_path / "nowhere", tmp_path / "snapshot" / "b.txt")
    assert "b.txt is a link that leads nowhere" in refusal(tmp_path / "snapshot")
    os.symlink(tmp_path / "nowhere", tmp_path / "link")
    assert "link is a link that leads nowhere" in refusal(tmp_path / "link")


def test_pipes_and_devices_are_never_opened(tmp_path):
    fill(tmp_path, ["a.txt"])
    os.mkfifo(tmp_path / "b.txt")
    os.symlink("/dev/zero", tmp_path / "c.txt")
    texts, left = read(tmp_path)
    assert texts == ["a.txt"]
    assert left == {"pipes and devices": ["b.txt", "c.txt"]}
    for source in (tmp_path / "b.txt", "/dev/zero", tmp_path / "c.txt"):
        assert "is not a plain file" in refusal(source)


def test_names_are_printed_without_control_characters(tmp_path):
    name = os.fsdecode(b"caf\xe9\x1b[31m.txt")
    (tmp_path / name).write_bytes(b"\xff")
    sentence = refusal(tmp_path)
    assert "\\udce9" in sentence
    assert "\\x1b[31m.txt" in sentence
    assert sentence.isprintable()


def test_what_save_to_disk_wrote(tmp_path):
    datasets = pytest.importorskip("datasets")
    texts = ["one", "two"]
    rows = datasets.Dataset.from_dict({"text": texts, "body": texts[::-1]})
    both, single = tmp_path / "both", tmp_path / "single"
    splits = datasets.DatasetDict({"train": rows, "test": rows.select([0])})
    splits.save_to_disk(str(both))
    assert read(both) == (texts, {"splits": ["test"]})
    assert read(both, split="test")[0] == ["one"]
    assert read(both, text_field="body")[0] == texts[::-1]
    sentence = refusal(both, split="nowhere")
    assert "has no split nowhere but train, test" in sentence
    rows.save_to_disk(str(single))
    assert read(single)[0] == texts
    sentence = refusal(single, text_field="other")
    assert "has no 'other' but body, text" in sentence
