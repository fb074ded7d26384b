"""A token file that is not the one that was made is named, at the start, when a window of it is read, or by the thread."""

import dataclasses
import hashlib
import itertools
import json
import time

import numpy as np
import pytest
from etils import epath

from sparsecod_jax.data import blocks, store
from sparsecod_jax.data.blocks import BLOCK, Shard, digests
from sparsecod_jax.data.pipeline import batches, evaluation_batches
from sparsecod_jax.data.store import Manifest, Split, Windows, read_manifest
from sparsecod_jax.errors import ConfigError

VOCABULARY, SEQ_LEN = 60_000, 64
TOKENS = 3 * BLOCK // 2 + 500  # the last block is a short one


def make(
    folder, *, recorded: bool = True, tokens: int = TOKENS
) -> tuple[Manifest, list]:
    """A data directory of two training shards, one of them a range of a raw file; and their files."""
    shards, paths = [], []
    for number in range(2):
        ids = (
            np.random.default_rng(number).integers(0, VOCABULARY, tokens).astype("<u2")
        )
        path = folder / (f"train-{number}.npy" if number else "part-0.npy")
        np.save(path, ids) if number else np.concatenate(
            [ids[:77], ids, ids[:99]]
        ).tofile(path)
        content = path.read_bytes()
        offset = len(content) - ids.nbytes if number else 154
        whole = content if number else ids.tobytes()
        found = digests(ids.tobytes()) if recorded else ""
        shards.append(
            Shard(
                path.name if number else str(path),
                offset,
                tokens,
                hashlib.sha256(whole).hexdigest(),
                found,
            )
        )
        paths.append(path)
    split = Split(1, 2 * tokens, 0, 1.0, tuple(shards))
    manifest = Manifest(
        {"source": "x"},
        "tokenizer.json",
        VOCABULARY,
        0,
        "uint16",
        split,
        split,
        0,
        () if recorded else None,
    )
    text = manifest.to_json()
    if not recorded:
        text = _as_of_4097eee(text)
    (folder / "manifest.json").write_text(text)
    (folder / "tokenizer.json").touch()
    return manifest, paths


def _as_of_4097eee(text: str) -> str:
    """The same manifest without the fields that commit did not write."""
    values = json.loads(text)
    for name in (
        "before",
        "near_duplicates",
        "duplicates_forgotten",
        "left_out",
        "round_trip",
        "tokenizer_digest",
        "checksum",
    ):
        del values[name]
    for split in ("train", "validation"):
        for shard in values[split]["shards"]:
            del shard["blocks"]
    return json.dumps({**values, "checksum": store._checksum(values)}, indent=1)


def flip(path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << place % 8
    path.write_bytes(content)


@pytest.mark.parametrize("recorded", [True, False])
def test_small_data_is_compared_at_the_start(tmp_path, recorded):
    manifest, paths = make(tmp_path, recorded=recorded)
    assert (
        read_manifest(epath.Path(tmp_path), "command").fingerprint
        == manifest.fingerprint
    )
    for path in paths:
        for place in (
            np.random.default_rng(0)
            .integers(154, path.stat().st_size - 198, 8)
            .tolist()
        ):
            flip(path, place)
            with pytest.raises(
                ConfigError,
                match=rf"{path.name} (is not the token file that was made: copy it again|has id)",
            ):
                read_manifest(epath.Path(tmp_path), "command")
            flip(path, place)
    assert read_manifest(epath.Path(tmp_path), "command")


def test_a_window_is_compared_when_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "SMALL", 0)
    manifest, paths = make(tmp_path)
    flip(paths[1], 128 + 5)
    assert read_manifest(epath.Path(tmp_path), "command") == manifest, (
        "large data is not read at the start"
    )
    windows = Windows(epath.Path(tmp_path), manifest, manifest.train, SEQ_LEN)
    damaged = TOKENS // SEQ_LEN + 1
    assert windows[0].size == SEQ_LEN + 1
    assert windows[len(windows) - 1].size == SEQ_LEN + 1, "other blocks are whole"
    with pytest.raises(ConfigError, match=r"train-1\.npy is not the token file"):
        windows[damaged]
    with pytest.raises(ConfigError, match=r"train-1\.npy is not the token file"):
        list(evaluation_batches(windows, 8, np.arange(8), 0))
    with pytest.raises(ConfigError, match=r"train-1\.npy is not the token file"):
        list(itertools.islice(batches(windows, 0, 8, 0, np.arange(8)), 1000))


def test_a_block_is_read_once(tmp_path, monkeypatch):
    manifest, _ = make(tmp_path)
    windows, read = Windows(epath.Path(tmp_path), manifest, manifest.train, SEQ_LEN), []
    original = blocks.read_bytes
    monkeypatch.setattr(
        blocks,
        "read_bytes",
        lambda file, start, stop: (
            read.append(stop - start) or original(file, start, stop)
        ),
    )
    for _ in range(2):
        for number in range(len(windows)):
            windows[number]
    assert sum(read) == 2 * TOKENS * 2
    assert max(read) <= 2 * BLOCK


@pytest.mark.parametrize("recorded", [True, False])
def test_the_thread_finds_what_is_not_read(tmp_path, monkeypatch, recorded):
    monkeypatch.setattr(store, "SMALL", 0)
    monkeypatch.setattr(blocks, "SHARE", 1.0)
    manifest, paths = make(tmp_path, recorded=recorded)
    flip(paths[1], paths[1].stat().st_size - 1)
    windows = Windows(epath.Path(tmp_path), manifest, manifest.train, SEQ_LEN)
    windows.watch()
    deadline = time.monotonic() + 20
    while windows._blocks._failure is None and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(
        ConfigError, match=r"train-1\.npy (is not the token file|has id)"
    ):
        windows[0]


def test_a_file_that_shrinks_is_named(tmp_path):
    manifest, paths = make(tmp_path)
    windows = Windows(epath.Path(tmp_path), manifest, manifest.train, SEQ_LEN)
    assert windows[0].size
    paths[0].write_bytes(paths[0].read_bytes()[:1000])
    with pytest.raises(ConfigError, match=r"part-0\.npy is not the token file"):
        windows[20]


def test_an_id_beyond_the_vocabulary_is_named(tmp_path):
    manifest, paths = make(tmp_path)
    smaller = dataclasses.replace(manifest, vocab_size=1000)
    with pytest.raises(
        ConfigError,
        match=rf"{paths[0].name} has id \d+, and the vocabulary ends at 999",
    ):
        Windows(epath.Path(tmp_path), smaller, smaller.train, SEQ_LEN)[0]


def test_old_data_is_read_as_it_was_and_said_to_be_old(tmp_path, capfd):
    manifest, _ = make(tmp_path, recorded=False)
    found = read_manifest(epath.Path(tmp_path), "command")
    assert found == manifest
    assert found.framing() == {"eos_id": 0, "start_id": 0, "before": []}
    assert (
        "was made before framing and digests of blocks were recorded"
        in capfd.readouterr().err
    )


def test_digests_of_pieces_join(tmp_path):
    content = np.random.default_rng(0).bytes(3 * BLOCK + 17)
    assert digests(content) == digests(content[: 2 * BLOCK]) + digests(
        content[2 * BLOCK :]
    )
    assert len(digests(content)) == 4 * blocks.DIGITS
