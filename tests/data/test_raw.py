"""The paper's raw part files are read where they lie, and whole documents are held out."""

import dataclasses
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
    """One array of ids a part, with that many documents, none of them empty."""
    rng = np.random.default_rng(seed)
    return [
        np.concatenate(
            [
                np.append(rng.integers(2, VOCABULARY, rng.integers(1, 40)), EOS)
                for _ in range(n)
            ]
        )
        for n in documents
    ]


def write(folder: Path, parts: list[np.ndarray]) -> Request:
    """Raw part files beside a tokenizer.json."""
    for number, ids in enumerate(parts):
        ids.astype("<u2").tofile(folder / f"part-{number:05d}.npy")
    inner = HFTokenizer(
        models.WordLevel(
            {"?": 0, "</s>": EOS, **{f"w{n}": n for n in range(2, VOCABULARY)}},
            unk_token="?",
        )
    )
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    inner.add_special_tokens(["</s>"])
    inner.save(str(folder / "tokenizer.json"))
    return Request(str(folder), str(folder / "tokenizer.json"), validation_fraction=0.1)


def tokens_of(out: Path, manifest: Manifest, split: Split) -> np.ndarray:
    return Windows(epath.Path(out), manifest, split, 1).tokens(0, split.tokens)


def documents_of(tokens: np.ndarray) -> list[tuple[int, ...]]:
    assert tokens[-1] == EOS
    return [
        tuple(ids.tolist())
        for ids in np.split(tokens, np.flatnonzero(tokens == EOS)[:-1] + 1)
    ]


@pytest.mark.parametrize("counts", [(200,), (30, 40, 50), (2, 2)])
def test_splits_are_whole_documents_and_together_everything(tmp_path, counts):
    request = write(tmp_path, parts := parts_of(0, counts))
    whole = np.concatenate(parts)
    for seed in range(6):
        out = tmp_path / f"out{seed}"
        manifest = prepare(
            Request(
                request.source,
                request.tokenizer,
                split_seed=seed,
                validation_fraction=0.1,
            ),
            str(out),
        )
        train, held_out = (
            tokens_of(out, manifest, split)
            for split in (manifest.train, manifest.validation)
        )
        assert Counter(documents_of(train) + documents_of(held_out)) == Counter(
            documents_of(whole)
        )
        start = next(
            n
            for n in range(whole.size)
            if np.array_equal(whole[n : n + held_out.size], held_out)
        )
        np.testing.assert_array_equal(
            train, np.delete(whole, slice(start, start + held_out.size))
        )
        assert (manifest.train.documents, manifest.validation.documents) == (
            (train == EOS).sum(),
            (held_out == EOS).sum(),
        )
        if len(counts) == 1:
            assert abs(held_out.size - 0.1 * whole.size) <= 40, (
                "the asked share, up to one document"
            )


def test_seed_chooses_what_is_held_out(tmp_path):
    request = write(tmp_path, parts_of(0, (60, 60)))
    places = set()
    for seed in range(6):
        manifest = prepare(
            Request(request.source, request.tokenizer, split_seed=seed),
            str(tmp_path / f"out{seed}"),
        )
        (shard,) = manifest.validation.shards
        places.add((shard.file, shard.offset))
    assert len(places) >= 5
    assert len({file for file, _ in places}) == 2


def test_files_stay_where_they_are(tmp_path):
    request = write(tmp_path, parts := parts_of(0, (20, 20)))
    manifest = prepare(request, str(tmp_path / "out"))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "manifest.json",
        "source.json",
        "tokenizer.json",
    }
    assert {shard.file for shard in manifest.train.shards} == {
        str(tmp_path / f"part-0000{n}.npy") for n in range(2)
    }
    for number, ids in enumerate(parts):
        np.testing.assert_array_equal(
            np.fromfile(tmp_path / f"part-0000{number}.npy", "<u2"), ids
        )
    assert prepare(request, str(tmp_path / "out")) == manifest


def test_a_part_that_was_added_since_is_told(tmp_path, capsys):
    request = write(tmp_path, parts_of(0, (20, 20)))
    manifest = prepare(request, str(tmp_path / "out"))
    assert prepare(request, str(tmp_path / "out")) == manifest
    assert "has changed" not in capsys.readouterr().out
    (tmp_path / "part-00002.npy").write_bytes(
        (tmp_path / "part-00001.npy").read_bytes()
    )
    Path(request.tokenizer).write_text(Path(request.tokenizer).read_text() + " ")
    assert prepare(request, str(tmp_path / "out")) == manifest
    said = capsys.readouterr().out
    assert "1 new (part-00002.npy)" in said
    assert f"the tokenizer {request.tokenizer} is not the one that was used" in said


def test_tokenizer_and_fingerprint_do_not_depend_on_the_place(tmp_path):
    manifests = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        request = write(tmp_path / name, parts_of(0, (20,)))
        manifests.append(prepare(request, str(tmp_path / name / "out")))
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
    with pytest.raises(
        ConfigError, match=r"part-00001.npy has a numpy header.*ndarray\.tofile"
    ):
        prepare(request, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_ids_beyond_the_tokenizer_are_refused(tmp_path):
    parts = parts_of(0, (20, 20))
    parts[1][3] = VOCABULARY
    with pytest.raises(
        ConfigError,
        match=f"part-00001.npy holds id {VOCABULARY} but the tokenizer ends at {VOCABULARY - 1}",
    ):
        prepare(write(tmp_path, parts), str(tmp_path / "out"))


def test_cut_file_wrong_eos_and_unnamed_tokenizer_are_refused(tmp_path):
    request = write(tmp_path, parts_of(0, (20,)))
    with pytest.raises(ConfigError, match="--tokenizer"):
        prepare(Request(request.source, "bytes"), str(tmp_path / "out"))
    with pytest.raises(ConfigError, match="check --eos_id"):
        prepare(
            Request(request.source, request.tokenizer, eos_id=5000),
            str(tmp_path / "out"),
        )
    file = tmp_path / "part-00000.npy"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ConfigError, match="cut off in the middle of an id"):
        prepare(request, str(tmp_path / "out"))


def test_ids_of_32_bits_are_told(tmp_path):
    request = write(tmp_path, parts_of(0, (20, 20)))
    ids = np.fromfile(tmp_path / "part-00001.npy", "<u2")
    ids.astype("<u4").tofile(tmp_path / "part-00001.npy")
    with pytest.raises(ConfigError, match=r"part-00001.npy holds ids of 32 bits"):
        prepare(request, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_few_ids_do_not_tell_their_width(tmp_path, monkeypatch):
    monkeypatch.setattr(raw, "CHUNK", 100)
    first = np.resize(np.array([5, 6, EOS]), 102)
    first[-2:] = EOS, 0  # the last chunk
    request = write(tmp_path, [first, np.array([5, 0])])
    request = dataclasses.replace(
        request,
        split_seed=next(
            seed for seed in range(9) if not np.random.default_rng(seed).integers(2)
        ),
    )
    assert prepare(request, str(tmp_path / "out")).train.tokens > 0


def test_what_all_documents_begin_with_is_their_framing(tmp_path):
    """Where it is what the tokenizer itself puts before a text."""
    parts = [
        np.concatenate(
            [np.array([2, *range(5, 9 + number % 7), EOS]) for number in range(60)]
        )
    ]
    request = write(tmp_path, parts)
    assert prepare(request, str(tmp_path / "plain")).before == ()
    inner = HFTokenizer.from_file(request.tokenizer)
    inner.post_processor = processors.TemplateProcessing(
        single="w2 $A", special_tokens=[("w2", 2)]
    )  # pyright: ignore[reportAttributeAccessIssue]
    inner.save(request.tokenizer)
    manifest = prepare(request, str(tmp_path / "begun"))
    assert manifest.before == (2,)
    assert manifest.framing() == {"eos_id": EOS, "start_id": 2, "before": [2]}
    parts[0][parts[0].size // 2 :] = 5
    parts[0].astype("<u2").tofile(tmp_path / "part-00000.npy")
    assert prepare(request, str(tmp_path / "begun2")).before == (2,)


def test_options_of_text_mean_nothing_for_ids(tmp_path):
    request = write(tmp_path, parts_of(0, (20,)))
    with pytest.raises(ConfigError, match="--max_tokens mean nothing"):
        prepare(dataclasses.replace(request, max_tokens=5), str(tmp_path / "out"))
