"""Sources and tokenizers that anyone may have made.

They are read, or refused in one sentence, in bounded time and memory; nothing in them is
executed. Each is tried by the command line, in a process of its own with LIMIT seconds and
MEMORY bytes of address space.
"""

import gzip
import io
import json
import os
import pickle
import resource
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparsecod_jax.data import sources, tokenizer
from sparsecod_jax.errors import ConfigError, SparsecodError

pytestmark = pytest.mark.faults

LIMIT = 180  # seconds; a source that is read takes 3
MEMORY = 6 * 2**30
TRIALS = int(os.environ.get("SPARSECOD_FAULT_TRIALS", "200"))
TEXTS = [f"document {n} of some words {n * n}" for n in range(500)]
GOOD = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS[:30]).encode()

SUPPRESSED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
MANY = settings(
    max_examples=TRIALS, deadline=None, suppress_health_check=SUPPRESSED, database=None
)

Made = dict[str, str]  # options of `sparsecod data`, beyond those that all have
CASES: dict[str, Callable[[Path], Made]] = {}


def case(function):
    """A hostile source, named by the function that makes it in a folder."""
    CASES[function.__name__] = function
    return function


def _files(**contents: bytes) -> Callable[[Path], Made]:
    """A source of these files; _ in a name is a dot, __ a slash."""

    def make(folder: Path) -> Made:
        for name, content in contents.items():
            path = folder / name.replace("__", "/").replace("_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return {}

    return make


def _sparse(path: Path, size: int) -> None:
    with open(path, "wb") as file:
        file.truncate(size)


def _row(text) -> bytes:
    return json.dumps({"text": text}).encode() + b"\n"


def _parquet(values, **options) -> bytes:
    import pyarrow
    from pyarrow import parquet

    out = io.BytesIO()
    parquet.write_table(pyarrow.table({"text": values}), out, **options)
    return out.getvalue()


def _zst(content: bytes, **options) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor(**options).compress(content)


PARQUET = _parquet(TEXTS)
GZ, ZST = gzip.compress(GOOD), _zst(GOOD)

CASES |= {
    "nothing": _files(),
    "empty file": _files(a_jsonl=b""),
    "only blank lines": _files(a_jsonl=b"\n" * 1000),
    "null bytes": _files(a_jsonl=bytes(1000)),
    "null bytes as text": _files(a_txt=bytes(1000)),
    "null bytes as csv": _files(a_csv=b"text\n" + bytes(1000)),
    "UTF-16": _files(a_txt="text".encode("utf-16")),
    "UTF-16 lines": _files(a_jsonl=GOOD.decode().encode("utf-16")),
    "latin": _files(a_txt=b"gr\xfcn"),
    "half a surrogate": _files(a_jsonl=b'{"text": "\\ud800"}\n'),
    "deep JSON": _files(a_jsonl=b'{"text": ' + b"[" * 10**6 + b"\n"),
    "deep JSON in a list": _files(a_json=b"[" * 10**6),
    "numbers": _files(a_jsonl=b"1\n2\n"),
    "huge number": _files(a_jsonl=b'{"text": ' + b"9" * 10**5 + b"}\n"),
    "not a number": _files(a_jsonl=b'{"text": NaN}\n'),
    "lists": _files(a_jsonl=_row(["a"])),
    "objects": _files(a_jsonl=_row({"a": 1})),
    "doubled names": _files(a_jsonl=b'{"text": "a", "text": 1}\n'),
    "escapes in names": _files(a_jsonl=b'{"\\u001b[31mred": "a"}\n'),
    "cut gz": _files(a_jsonl_gz=GZ[:-9]),
    "cut zst": _files(a_jsonl_zst=ZST[:-9]),
    "gz that is none": _files(a_jsonl_gz=GOOD),
    "zst that is none": _files(a_jsonl_zst=GOOD),
    "gz in gz": _files(a_jsonl_gz=gzip.compress(GZ)),
    "gz with rubbish after it": _files(a_jsonl_gz=GZ + b"rubbish"),
    "csv that never closes": _files(a_csv=b'text\n"' + b"a\n" * 10**6),
    "csv without rows": _files(a_csv=b"text\n"),
    "csv without names": _files(a_csv=b"\n\n"),
    "csv of one line": _files(a_csv=b"text," * 10**6),
    "parquet that is none": _files(a_parquet=b"PAR1 and nothing PAR1"),
    "parquet of zeros": _files(a_parquet=b"PAR1" + bytes(1000) + b"PAR1"),
    "parquet with a long footer": _files(
        a_parquet=PARQUET[:-8] + struct.pack("<I", 2**31 - 1) + b"PAR1"
    ),
    "parquet cut": _files(a_parquet=PARQUET[: len(PARQUET) // 2]),
    "parquet with a damaged page": _files(
        a_parquet=PARQUET[:100] + bytes(500) + PARQUET[600:]
    ),
    "parquet of integers": _files(a_parquet=_parquet([1, 2])),
    "parquet of nulls": _files(a_parquet=_parquet([None, None])),
    "parquet of structs": _files(a_parquet=_parquet([{"a": 1}])),
    "parquet of binary that is no text": _files(a_parquet=_parquet([b"\xff\xfe"])),
    "pickle as npy": _files(
        **{"part-00000_npy": pickle.dumps({"a": 1}), "a_txt": b"x"}
    ),
    "README of python objects": _files(
        README_md=b"---\nconfigs: !!python/object/apply:os.system ['touch CANARY']\n---\n",
        a_jsonl=GOOD,
        b_jsonl=b"x",
    ),
    "README of aliases": _files(
        README_md=b"---\na: &a [x,x,x,x,x,x,x,x,x]\n"
        + b"".join(
            b"%c: &%c [%s]\n" % (n, n, b",".join([b"*%c" % (n - 1)] * 9))
            for n in range(98, 120)
        )
        + b"configs: *w\n---\n",
        a_jsonl=b"x",
    ),
    "README without an end": _files(README_md=b"---\n" + b"a: [" * 10**5, a_jsonl=b"x"),
    "state.json of nothing": _files(state_json=b"{}"),
    "state.json of files elsewhere": _files(
        state_json=json.dumps({"_data_files": [{"filename": "../../x.arrow"}]}).encode()
    ),
    "splits of nothing": _files(dataset_dict_json=b'{"splits": ["../train", "x"]}'),
    "damaged arrow": _files(
        state_json=json.dumps(
            {"_data_files": [{"filename": "a.arrow"}], "_format_type": None}
        ).encode(),
        dataset_info_json=b"{}",
        a_arrow=bytes(1000),
    ),
}


def _gz_of(path: Path, part: bytes, times: int) -> None:
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(times):
            file.write(part)


def _zst_of(path: Path, part: bytes, times: int) -> None:
    import zstandard

    with open(path, "wb") as raw, zstandard.ZstdCompressor().stream_writer(raw) as file:
        for _ in range(times):
            file.write(part)


@case
def bomb_in_gz(folder):
    _gz_of(folder / "a.jsonl.gz", bytes(2**20), 2**10)
    return {}


@case
def bomb_of_blank_lines_in_gz(folder):
    _gz_of(folder / "a.jsonl.gz", b"\n" * 2**20, 2**10)
    return {}


@case
def bomb_of_rows_in_zst(folder):
    _zst_of(folder / "a.jsonl.zst", _row("abc " * 2**18), 2**10)
    return {}


@case
def bomb_as_text_in_zst(folder):
    _zst_of(folder / "a.txt.zst", b"abc " * 2**18, 2**10)
    return {}


@case
def bomb_as_csv_in_gz(folder):
    (folder / "a.csv.gz").write_bytes(gzip.compress(b'text\n"'))
    with open(folder / "a.csv.gz", "ab") as file:
        file.write(gzip.compress(b"a\n" * 2**28, 1))
    return {}


@case
def bomb_of_one_word_in_parquet(folder):
    import pyarrow
    from pyarrow import parquet

    word = pyarrow.DictionaryArray.from_arrays(
        pyarrow.array([0] * 100_000, pyarrow.int32()), pyarrow.array(["ab " * 10**6])
    )
    parquet.write_table(pyarrow.table({"text": word}), folder / "a.parquet")
    return {}


@case
def a_line_of_3_gb(folder):
    _sparse(folder / "a.jsonl", 3 * 2**30)
    return {}


@case
def a_text_of_3_gb(folder):
    _sparse(folder / "a.txt", 3 * 2**30)
    return {}


@case
def a_text_of_3_gb_with_a_separator(folder):
    _sparse(folder / "a.txt", 3 * 2**30)
    return {"separator": "<|endoftext|>"}


@case
def a_list_of_3_gb(folder):
    _sparse(folder / "a.json", 3 * 2**30)
    with open(folder / "a.json", "r+b") as file:
        file.write(b"[1")
    return {}


@case
def pipe(folder):
    os.mkfifo(folder / "a.jsonl")
    return {"source": str(folder / "a.jsonl")}


@case
def pipe_in_a_folder(folder):
    os.mkfifo(folder / "a.jsonl")
    return {}


@case
def pipe_as_readme(folder):
    os.mkfifo(folder / "README.md")
    (folder / "a.jsonl").write_bytes(b"x")
    return {}


@case
def endless_device(folder):
    return {"source": "/dev/zero"}


@case
def link_to_an_endless_device(folder):
    os.symlink("/dev/zero", folder / "a.txt")
    return {}


@case
def links_to_itself(folder):
    for number in range(6):
        os.symlink(folder, folder / f"{number}")
    (folder / "a.jsonl").write_bytes(b"x")
    return {}


@case
def link_to_a_link_to_itself(folder):
    os.symlink(folder / "b.txt", folder / "a.txt")
    os.symlink(folder / "a.txt", folder / "b.txt")
    return {}


@case
def dangling_link(folder):
    os.symlink(folder / "nowhere", folder / "a.txt")
    return {}


@case
def name_that_is_no_text(folder):
    (folder / os.fsdecode(b"\xff\x1b[31m.txt")).write_bytes(b"\xff")
    return {}


@case
def deep_folders(folder):
    deep = folder.joinpath(*["d"] * 300)
    deep.mkdir(parents=True)
    (deep / "a.jsonl").write_bytes(b"x")
    return {}


@case
def script_of_a_data_set(folder):
    (folder / f"{folder.name}.py").write_text(
        f"open({str(folder.parent / 'CANARY')!r}, 'w')\n"
    )
    return {"source": f"hf:{folder}"}


@case
def data_set_that_is_not_there(folder):
    return {"source": f"hf:{folder}/absent"}


@case
def path_with_a_null(folder):
    (folder / "a.txt").write_text("x")
    return {"source": f"{folder}/a\n.txt"}


@case
def path_too_long(folder):
    return {"source": f"{folder}/{'x' * 5000}"}


@case
def pipe_as_tokenizer(folder):
    (folder / "a.jsonl").write_bytes(GOOD)
    os.mkfifo(folder / "tokenizer.json")
    return {"tokenizer": str(folder / "tokenizer.json")}


@case
def raw_ids_in_a_pipe(folder):
    os.mkfifo(folder / "part-00000.npy")
    tokenizer.of_bytes().inner.save(str(folder / "tokenizer.json"))
    return {"tokenizer": str(folder / "tokenizer.json")}


@case
def raw_ids_of_an_array_of_objects(folder):
    np.save(folder / "part-00000.npy", np.array([{"a": 1}]), allow_pickle=True)
    tokenizer.of_bytes().inner.save(str(folder / "tokenizer.json"))
    return {"tokenizer": str(folder / "tokenizer.json")}


def _tokenizer(change: Callable[[dict], object]) -> Callable[[Path], Made]:
    """A good source, with a tokenizer.json whose values are changed."""

    def make(folder: Path) -> Made:
        values = json.loads(tokenizer.of_bytes().inner.to_str())
        change(values)
        (folder.parent / "tokenizer.json").write_text(json.dumps(values))
        (folder / "a.jsonl").write_bytes(GOOD)
        return {"tokenizer": str(folder.parent / "tokenizer.json")}

    return make


def _normalizer(*rules: dict) -> Callable[[Path], Made]:
    normalizer = {"type": "Sequence", "normalizers": list(rules)}
    return _tokenizer(lambda values: values.update(normalizer=normalizer))


CASES |= {
    "tokenizer of replacements": _normalizer(
        *[{"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 40}] * 10
    ),
    "tokenizer that repeats": _normalizer(
        *[{"type": "Replace", "pattern": {"Regex": "."}, "content": "abc"}] * 18
    ),
    "tokenizer with a broken table": _normalizer(
        {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    ),
    "tokenizer with a bad pattern": _normalizer(
        {"type": "Replace", "pattern": {"Regex": "("}, "content": ""}
    ),
    "tokenizer without a vocabulary": _tokenizer(
        lambda values: values["model"].update(vocab={}, merges=[])
    ),
    "tokenizer with huge ids": _tokenizer(
        lambda values: values["model"]["vocab"].update({"x": 2**32 - 1})
    ),
    "tokenizer with merges of nothing": _tokenizer(
        lambda values: values["model"].update(merges=[["zzz", "yyy"]])
    ),
    "tokenizer of another kind": _tokenizer(
        lambda values: values.update(model={"type": "Other"})
    ),
    "tokenizer without added tokens": _tokenizer(
        lambda values: values.update(added_tokens=[])
    ),
}


def _run(folder: Path, made: Made) -> subprocess.CompletedProcess:
    """`sparsecod data` for the source in a folder."""
    options = {
        "source": str(folder),
        "tokenizer": "bytes",
        "out": str(folder.parent / "out"),
        "validation_fraction": "0.3",
        **made,
    }
    words = [f"--{name}={value}" for name, value in options.items()]
    return subprocess.run(
        [sys.executable, "-m", "sparsecod_jax", "data", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=LIMIT,
        check=False,
        cwd=folder.parent,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY)),
    )


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_source_ends_with_a_sentence(tmp_path, name):
    folder = tmp_path / "source"
    folder.mkdir()
    made = CASES[name](folder)
    began = time.monotonic()
    done = _run(folder, made)
    seconds = time.monotonic() - began
    errors = done.stderr.decode()
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(
        f"{name}: code {done.returncode}, {seconds:.1f} s,"
        f" {peak:.2f} GiB at most so far"
    )
    assert "Traceback" not in errors, errors[-2000:]
    assert done.returncode in (0, 78), errors[-2000:]
    assert not list(tmp_path.rglob("CANARY"))
    if done.returncode == 78:
        lines = errors.splitlines()
        (sentence,) = [line for line in lines if line.startswith("sparsecod data: ")]
        assert sentence.isprintable()
        assert len(sentence) < 1500
        assert not (tmp_path / "out" / "manifest.json").exists()


def test_there_are_enough():
    assert len(CASES) >= 60


KINDS = {
    "a.jsonl": GOOD,
    "a.json": b"[" + _row("x") + b"]",
    "a.csv": b"text,b\nx,1\n",
    "a.parquet": PARQUET,
    "a.jsonl.gz": GZ,
    "a.jsonl.zst": ZST,
}


@pytest.mark.parametrize("name", KINDS)
def test_damage_anywhere_is_read_or_named(tmp_path, name):
    """Bytes are changed, removed or inserted at random positions."""
    tried = {"read": 0, "named": 0}

    @MANY
    @given(st.data())
    def check(data):
        content = bytearray(KINDS[name])
        for _ in range(data.draw(st.integers(1, 4))):
            first = data.draw(st.integers(0, len(content) - 1))
            last = min(first + data.draw(st.integers(0, 40)), len(content))
            content[first:last] = data.draw(st.binary(max_size=40))
            content = content or bytearray(b"x")
        (tmp_path / name).write_bytes(content)
        try:
            texts = list(sources.documents(str(tmp_path / name)))
            assert all(isinstance(text, str) for text in texts)
            tried["read"] += 1
        except ConfigError as error:
            assert str(error).isprintable()  # noqa: PT017
            tried["named"] += 1

    check()
    print(name, tried)


def test_damaged_tokenizers_are_read_or_named(tmp_path):
    tried = {"read": 0, "named": 0}
    good = bytearray(tokenizer.of_bytes().inner.to_str().encode())

    @MANY
    @given(st.data())
    def check(data):
        content = bytearray(good)
        for _ in range(data.draw(st.integers(1, 3))):
            position = data.draw(st.integers(0, len(content) - 1))
            content[position] = data.draw(st.sampled_from(b"019 az?\xff"))
        path = epath.Path(tmp_path / "t.json")
        path.write_bytes(bytes(content))
        try:
            tokenizer.load(path, eos_id=256).encode(["a b"])
            tried["read"] += 1
        except SparsecodError:
            tried["named"] += 1

    check()
    print("tokenizers", tried)
    assert min(tried.values()) > 0
