"""Shards are read as one sequence, and a damaged or wrong manifest is refused."""

import dataclasses
import functools
import hashlib
import json
import operator
import os
import re

import numpy as np
import pytest
from etils import epath

from sparsecod_jax.data import store
from sparsecod_jax.data.blocks import Shard, digests
from sparsecod_jax.data.store import (
    Manifest,
    Split,
    Windows,
    _checksum,
    entropy,
    read_manifest,
)
from sparsecod_jax.errors import ConfigError

HIGHEST = {"uint16": 2**16 - 1, "uint32": 10**6}  # ids


def make_split(
    folder, name: str, sizes: list[int], dtype: str, seed: int
) -> tuple[Split, np.ndarray]:
    """Shards of these sizes, and their tokens as one array.

    The second shard is in the middle of a raw file.
    """
    rng = np.random.default_rng(seed)
    highest = HIGHEST[dtype]
    shards, pieces = [], []
    for number, size in enumerate(sizes):
        ids = rng.integers(0, highest, size, endpoint=True).astype(dtype)
        file = folder / f"{name}-{number}.npy"
        if number == 1:
            np.concatenate([ids, ids, ids]).tofile(file)
            path, offset = str(file), ids.nbytes
        else:
            np.save(file, ids)
            path, offset = file.name, file.stat().st_size - ids.nbytes
        content = ids.tobytes()
        sha256 = hashlib.sha256(content).hexdigest()
        shards.append(Shard(path, offset, size, sha256, digests(content)))
        pieces.append(ids)
    tokens = np.concatenate(pieces)
    _, counts = np.unique(tokens, return_counts=True)
    text_bytes = 10 * tokens.size
    split = Split(1, tokens.size, text_bytes, entropy(counts), tuple(shards))
    return split, tokens


def make(
    folder, sizes: list[int], dtype: str = "uint16"
) -> tuple[Manifest, np.ndarray]:
    """A data directory and the tokens of its training split."""
    train, tokens = make_split(folder, "train", sizes, dtype, 0)
    validation, _ = make_split(folder, "validation", [9], dtype, 1)
    manifest = Manifest(
        {"source": "x"},
        "tokenizer.json",
        HIGHEST[dtype] + 1,
        0,
        dtype,
        train,
        validation,
        0,
        (),
    )
    (folder / "manifest.json").write_text(manifest.to_json())
    (folder / "tokenizer.json").touch()
    return manifest, tokens


def read(folder) -> Manifest:
    return read_manifest(epath.Path(folder), "command")


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
@pytest.mark.parametrize("seq_len", [1, 4, 7, 40])
def test_windows_cross_shard_borders(tmp_path, dtype, seq_len):
    manifest, tokens = make(tmp_path, [5, 1, 17, 3, 2, 30], dtype)
    windows = Windows(epath.Path(tmp_path), manifest, manifest.train, seq_len)
    assert windows.total_tokens == tokens.size == 58
    assert len(windows) == (58 - 1) // seq_len
    for index in range(len(windows)):
        expected = tokens[index * seq_len : index * seq_len + seq_len + 1]
        assert windows[index].dtype == np.int32
        np.testing.assert_array_equal(windows[index], expected)
        assert windows[index].size == seq_len + 1


def test_any_range_of_tokens(tmp_path):
    manifest, tokens = make(tmp_path, [5, 1, 7])
    windows = Windows(epath.Path(tmp_path), manifest, manifest.train, 2)
    for start in range(13):
        for stop in range(start + 1, 16):
            piece = windows.tokens(start, stop)
            np.testing.assert_array_equal(piece, tokens[start:stop])


def test_entropy_in_nats():
    assert entropy(np.array([5, 5, 0, 5, 5])) == pytest.approx(np.log(4))
    assert entropy(np.array([3, 1])) == pytest.approx(np.log(4) - 0.75 * np.log(3))
    assert entropy(np.array([7])) == 0


def test_manifest_survives_the_disk(tmp_path):
    manifest, _ = make(tmp_path, [5, 6])
    assert read(tmp_path) == manifest


def test_fingerprint_is_of_content_order_and_split(tmp_path):
    manifest, _ = make(tmp_path, [5, 6, 7])
    first, second, third = manifest.train.shards
    moved = dataclasses.replace(first, file="/elsewhere/train.npy", offset=0)
    held_out = manifest.validation.shards

    def fingerprint(train, validation):
        changed = dataclasses.replace(
            manifest,
            train=dataclasses.replace(manifest.train, shards=train),
            validation=dataclasses.replace(manifest.validation, shards=validation),
        )
        return changed.fingerprint

    assert fingerprint((moved, second, third), held_out) == manifest.fingerprint
    assert fingerprint((second, first, third), held_out) != manifest.fingerprint
    assert fingerprint((first, second), (third, *held_out)) != manifest.fingerprint
    assert dataclasses.replace(manifest, eos_id=1).fingerprint != manifest.fingerprint


def test_every_flipped_bit_of_a_manifest_is_refused(tmp_path):
    manifest, _ = make(tmp_path, [5, 6])
    file = tmp_path / "manifest.json"
    content = file.read_bytes()
    refused = 0
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        file.write_bytes(flipped)
        try:
            assert read(tmp_path) == manifest, "two decimals may be one float"
        except ConfigError as error:
            assert re.search(r"can't be read|was changed", str(error))  # noqa: PT017
            refused += 1
    assert refused > 0.99 * len(content)


@pytest.mark.parametrize(
    "content", ["", "[]", '"x"', "{}", "5", '{"fingerprint": "x"}']
)
def test_what_is_no_manifest_is_refused(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    sentence = r"can't be read as a manifest .*: copy it again .* in another folder"
    with pytest.raises(ConfigError, match=sentence):
        read(tmp_path)


def test_numbers_changed_by_hand_are_refused(tmp_path):
    make(tmp_path, [5, 6])
    file = tmp_path / "manifest.json"
    values = json.loads(file.read_text())
    values["validation"]["text_bytes"] += 1
    file.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="was changed after it was made"):
        read(tmp_path)


def test_a_missing_tokenizer_is_named(tmp_path):
    make(tmp_path, [5])
    (tmp_path / "tokenizer.json").unlink()
    sentence = r"tokenizer\.json is missing: copy it again .* `command`"
    with pytest.raises(ConfigError, match=sentence):
        read(tmp_path)


def test_a_tokenizer_that_is_a_pipe_is_named(tmp_path):
    make(tmp_path, [5])
    (tmp_path / "tokenizer.json").unlink()
    os.mkfifo(tmp_path / "tokenizer.json")
    with pytest.raises(ConfigError, match=r"tokenizer\.json is not a plain file"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("dtype",), "float64"),
        (("dtype",), "O"),
        (("vocab_size",), "9"),
        (("eos_id",), -1),
        (("eos_id",), True),
        (("before",), ["x"]),
        (("train", "shards", 0, "offset"), -2),
        (("train", "shards", 0, "tokens"), 2.5),
        (("train", "shards", 0, "blocks"), "00"),
    ],
)
def test_values_that_no_data_has_are_refused(tmp_path, path, value):
    """Even if the checksum fits, as anyone can compute one."""
    make(tmp_path, [5])
    file = tmp_path / "manifest.json"
    values = json.loads(file.read_text())
    inner = functools.reduce(operator.getitem, path[:-1], values)
    inner[path[-1]] = value
    del values["checksum"]
    file.write_text(json.dumps({**values, "checksum": _checksum(values)}))
    sentence = rf"can't be read as a manifest of data \({path[-1]}"
    with pytest.raises(ConfigError, match=sentence):
        read(tmp_path)


def test_files_in_a_bucket_are_not_read_at_the_start(tmp_path, monkeypatch):
    manifest, _ = make(tmp_path, [5])
    (shard,) = manifest.train.shards
    remote = dataclasses.replace(shard, file=f"gs://bucket/{shard.file}", blocks="")
    train = dataclasses.replace(manifest.train, shards=(remote,))
    old = dataclasses.replace(manifest, train=train, before=None)
    (tmp_path / "manifest.json").write_text(old.to_json())
    monkeypatch.setattr(store, "_length", lambda file: 2**30)
    assert read(tmp_path).train == old.train


def test_missing_and_truncated_shards_are_refused(tmp_path):
    manifest, _ = make(tmp_path, [5, 6])
    file = tmp_path / manifest.validation.shards[0].file
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with pytest.raises(ConfigError, match=f"{file.name} is missing or shorter"):
        read(tmp_path)
    file.unlink()
    with pytest.raises(ConfigError, match=f"{file.name} is missing or shorter"):
        read(tmp_path)


def test_absent_directory_names_the_command(tmp_path):
    with pytest.raises(ConfigError, match="run `sparsecod data`"):
        read_manifest(epath.Path(tmp_path) / "absent", "sparsecod data")
