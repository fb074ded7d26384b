"""The paper's raw part files are read where they are; whole documents are held out."""

import dataclasses
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from tokenizers import Tokenizer as HFTokenizer
from tokenizers import models, pre_tokenizers, processors

from sparsecod_jax.data import raw, tokenizer
from sparsecod_jax.data.prepare import Request, prepare
from sparsecod_jax.data.store import Manifest, Split, Windows
from sparsecod_jax.errors import ConfigError

EOS, VOCABULARY = 1, 33000  # beyond 2**15


def parts_of(seed: int, documents: tuple[int, ...]) -> list[np.ndarray]:
    """One array of ids per part, with this number of documents, none of them empty."""
    rng = np.random.default_rng(seed)

    def document() -> np.ndarray:
        size = rng.integers(1, 40)
        return np.append(rng.integers(2, VOCABULARY, size), EOS)

    return [np.concatenate([document() for _ in range(n)]) for n in documents]


def write(folder: Path, parts: list[np.ndarray]) -> Request:
    """Raw part files beside a tokenizer.json."""
    for number, ids in enumerate(parts):
        ids.astype("<u2").tofile(folder / f"part-{number:05d}.npy")
    vocabulary = {"?": 0, "</s>": EOS}
    vocabulary |= {f"w{n}": n for n in range(2, VOCABULARY)}
    inner = HFTokenizer(models.WordLevel(vocabulary, unk_token="?"))
    split = pre_tokenizers.WhitespaceSplit()
    inner.pre_tokenizer = split  # pyright: ignore[reportAttributeAccessIssue]
    inner.add_special_tokens(["</s>"])
    inner.save(str(folder / "tokenizer.json"))
    return Request(str(folder), str(folder / "tokenizer.json"), validation_fraction=0.1)


def make(request: Request, out: Path) -> Manifest:
    return prepare(request, str(out))


def tokens_of(out: Path, manifest: Manifest, split: Split) -> np.ndarray:
    return Windows(epath.Path(out), manifest, split, 1).tokens(0, split.tokens)


def documents_of(tokens: np.ndarray) -> list[tuple[int, ...]]:
    ends = np.flatnonzero(tokens == EOS) + 1
    assert ends[-1] == tokens.size
    return [tuple(ids.tolist()) for ids in np.split(tokens, ends[:-1])]


@pytest.mark.parametrize("counts", [(200,), (30, 40, 50), (2, 2)])
def test_splits_are_whole_documents_and_together_everything(tmp_path, counts):
    request = write(tmp_path, parts := parts_of(0, counts))
    whole = np.concatenate(parts)
    for seed in range(6):
        out = tmp_path / f"out{seed}"
        manifest = make(dataclasses.replace(request, split_seed=seed), out)
        train = tokens_of(out, manifest, manifest.train)
        held_out = tokens_of(out, manifest, manifest.validation)
        both = documents_of(train) + documents_of(held_out)
        assert Counter(both) == Counter(documents_of(whole))
        views = np.lib.stride_tricks.sliding_window_view(whole, held_out.size)
        start = int((views == held_out).all(axis=1).argmax())
        rest = np.delete(whole, slice(start, start + held_out.size))
        np.testing.assert_array_equal(train, rest)
        assert manifest.train.documents == (train == EOS).sum()
        assert manifest.validation.documents == (held_out == EOS).sum()
        if len(counts) == 1:  # the share is as requested, up to one document
            assert abs(held_out.size - 0.1 * whole.size) <= 40


def test_seed_chooses_what_is_held_out(tmp_path):
    request = write(tmp_path, parts_of(0, (60, 60)))
    places = set()
    for seed in range(6):
        manifest = make(
            Request(request.source, request.tokenizer, split_seed=seed),
            tmp_path / f"out{seed}",
        )
        (shard,) = manifest.validation.shards
        places.add((shard.file, shard.offset))
    assert len(places) >= 5
    assert len({file for file, _ in places}) == 2


def test_files_stay_where_they_are(tmp_path):
    request = write(tmp_path, parts := parts_of(0, (20, 20)))
    manifest = make(request, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"manifest.json", "source.json", "tokenizer.json"}
    paths = [str(tmp_path / f"part-0000{n}.npy") for n in range(2)]
    assert {shard.file for shard in manifest.train.shards} == set(paths)
    for path, ids in zip(paths, parts, strict=True):
        np.testing.assert_array_equal(np.fromfile(path, "<u2"), ids)
    assert make(request, tmp_path / "out") == manifest


def test_a_part_that_was_added_since_is_reported(tmp_path, capsys):
    request = write(tmp_path, parts_of(0, (20, 20)))
    manifest = make(request, tmp_path / "out")
    assert make(request, tmp_path / "out") == manifest
    assert "has changed" not in capsys.readouterr().out
    shutil.copy(tmp_path / "part-00001.npy", tmp_path / "part-00002.npy")
    with open(request.tokenizer, "a") as file:
        file.write(" ")
    assert make(request, tmp_path / "out") == manifest
    output = capsys.readouterr().out
    assert "1 new (part-00002.npy)" in output
    assert f"the tokenizer {request.tokenizer} is not the one that was used" in output


def test_tokenizer_and_fingerprint_do_not_depend_on_the_folder(tmp_path):
    manifests = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        request = write(tmp_path / name, parts_of(0, (20,)))
        manifests.append(make(request, tmp_path / name / "out"))
        Path(request.tokenizer).unlink()
        encoder = tokenizer.load(
            epath.Path(tmp_path / name / "out" / tokenizer.TOKENIZER),
            manifests[-1].eos_id,
        )
        assert encoder.encode(["w5"])[0].tolist() == [5, EOS]
    assert manifests[0].fingerprint == manifests[1].fingerprint


def test_numpy_header_is_refused(tmp_path):
    request = write(tmp_path, parts := parts_of(0, (20, 20)))
    np.save(tmp_path / "part-00001.npy", parts[1].astype("<u2"))
    sentence = r"part-00001.npy has a numpy header.*ndarray\.tofile"
    with pytest.raises(ConfigError, match=sentence):
        make(request, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_ids_beyond_the_tokenizer_are_refused(tmp_path):
    parts = parts_of(0, (20, 20))
    parts[1][3] = VOCABULARY
    highest = VOCABULARY - 1
    sentence = (
        f"part-00001.npy holds id {VOCABULARY} but the tokenizer ends at {highest}"
    )
    with pytest.raises(ConfigError, match=sentence):
        make(write(tmp_path, parts), tmp_path / "out")


def test_cut_file_wrong_eos_and_unnamed_tokenizer_are_refused(tmp_path):
    request = write(tmp_path, parts_of(0, (20,)))
    with pytest.raises(ConfigError, match="--tokenizer"):
        make(Request(request.source, "bytes"), tmp_path / "out")
    with pytest.raises(ConfigError, match="check --eos_id"):
        make(Request(request.source, request.tokenizer, eos_id=5000), tmp_path / "out")
    file = tmp_path / "part-00000.npy"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ConfigError, match="cut off in the middle of an id"):
        make(request, tmp_path / "out")


def test_ids_of_32_bits_are_refused(tmp_path):
    request = write(tmp_path, parts_of(0, (20, 20)))
    ids = np.fromfile(tmp_path / "part-00001.npy", "<u2")
    ids.astype("<u4").tofile(tmp_path / "part-00001.npy")
    with pytest.raises(ConfigError, match=r"part-00001.npy holds ids of 32 bits"):
        make(request, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_few_ids_do_not_tell_their_width(tmp_path, monkeypatch):
    monkeypatch.setattr(raw, "CHUNK", 100)
    first = np.resize(np.array([5, 6, EOS]), 102)
    first[-2:] = EOS, 0  # the last chunk
    request = write(tmp_path, [first, np.array([5, 0])])
    of_first_part = [s for s in range(9) if not np.random.default_rng(s).integers(2)]
    request = dataclasses.replace(request, split_seed=of_first_part[0])
    assert make(request, tmp_path / "out").train.tokens > 0


def test_what_all_documents_begin_with_is_their_framing(tmp_path):
    """Where it is what the tokenizer itself puts before a text."""
    documents = [[2, *range(5, 9 + number % 7), EOS] for number in range(60)]
    parts = [np.concatenate(documents)]
    request = write(tmp_path, parts)
    assert make(request, tmp_path / "plain").before == ()
    inner = HFTokenizer.from_file(request.tokenizer)
    template = processors.TemplateProcessing(single="w2 $A", special_tokens=[("w2", 2)])
    inner.post_processor = template  # pyright: ignore[reportAttributeAccessIssue]
    inner.save(request.tokenizer)
    manifest = make(request, tmp_path / "begun")
    assert manifest.before == (2,)
    assert manifest.framing() == {"eos_id": EOS, "start_id": 2, "before": [2]}
    parts[0][parts[0].size // 2 :] = 5
    parts[0].astype("<u2").tofile(tmp_path / "part-00000.npy")
    assert make(request, tmp_path / "begun2").before == (2,)


def test_options_of_text_mean_nothing_for_ids(tmp_path):
    request = write(tmp_path, parts_of(0, (20,)))
    with pytest.raises(ConfigError, match="--max_tokens mean nothing"):
        make(dataclasses.replace(request, max_tokens=5), tmp_path / "out")
