"""A token file that is not the one that was made is named.

At the start, when a window of it is read, or by the thread.
"""

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
    """A data directory of two training shards, and the paths of their files.

    The first is a range of a raw file. Without `recorded` it is one of an earlier version.
    """
    raw, saved = folder / "part-0.npy", folder / "train-1.npy"
    first, second = (
        np.random.default_rng(number).integers(0, VOCABULARY, tokens).astype("<u2")
        for number in range(2)
    )
    np.concatenate([first[:77], first, first[:99]]).tofile(raw)
    np.save(saved, second)
    content = saved.read_bytes()
    header = len(content) - second.nbytes
    shards = (
        _shard(str(raw), 2 * 77, first, first.tobytes(), recorded),
        _shard(saved.name, header, second, content, recorded),
    )
    split = Split(1, 2 * tokens, 0, 1.0, shards)
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
    return manifest, [raw, saved]


def _shard(file, offset: int, ids, hashed: bytes, recorded: bool) -> Shard:
    sha256 = hashlib.sha256(hashed).hexdigest()
    blocks = digests(ids.tobytes()) if recorded else ""
    return Shard(file, offset, ids.size, sha256, blocks)


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


def flip(path, position: int) -> None:
    """Changes one bit of a byte."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << position % 8
    path.write_bytes(content)


def read(folder) -> Manifest:
    return read_manifest(epath.Path(folder), "command")


def windows_of(folder, manifest: Manifest) -> Windows:
    return Windows(epath.Path(folder), manifest, manifest.train, SEQ_LEN)


@pytest.mark.parametrize("recorded", [True, False])
def test_small_data_is_compared_at_the_start(tmp_path, recorded):
    manifest, paths = make(tmp_path, recorded=recorded)
    assert read(tmp_path).fingerprint == manifest.fingerprint
    for path in paths:
        last = path.stat().st_size - 198
        sentence = f"{path.name} (is not the token file .*: copy it again|has id)"
        for position in np.random.default_rng(0).integers(154, last, 8).tolist():
            flip(path, position)
            with pytest.raises(ConfigError, match=sentence):
                read(tmp_path)
            flip(path, position)
    assert read(tmp_path)


def test_a_window_is_compared_when_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "SMALL", 0)
    manifest, paths = make(tmp_path)
    flip(paths[1], 128 + 5)
    assert read(tmp_path) == manifest, "large data is not read at the start"
    windows = windows_of(tmp_path, manifest)
    damaged = TOKENS // SEQ_LEN + 1
    assert windows[0].size == SEQ_LEN + 1
    assert windows[len(windows) - 1].size == SEQ_LEN + 1, "other blocks are whole"
    sentence = r"train-1\.npy is not the token file"
    with pytest.raises(ConfigError, match=sentence):
        windows[damaged]
    with pytest.raises(ConfigError, match=sentence):
        list(evaluation_batches(windows, 8, np.arange(8), 0))
    with pytest.raises(ConfigError, match=sentence):
        list(itertools.islice(batches(windows, 0, 8, 0, np.arange(8)), 1000))


def test_a_block_is_read_once(tmp_path, monkeypatch):
    manifest, _ = make(tmp_path)
    windows = windows_of(tmp_path, manifest)
    original = blocks.read_bytes
    sizes = []

    def read_bytes(file, start, stop):
        sizes.append(stop - start)
        return original(file, start, stop)

    monkeypatch.setattr(blocks, "read_bytes", read_bytes)
    for _ in range(2):
        for number in range(len(windows)):
            windows[number]
    assert sum(sizes) == 2 * TOKENS * 2
    assert max(sizes) <= 2 * BLOCK


@pytest.mark.parametrize("recorded", [True, False])
def test_the_thread_finds_what_is_not_read(tmp_path, monkeypatch, recorded):
    monkeypatch.setattr(store, "SMALL", 0)
    monkeypatch.setattr(blocks, "SHARE", 1.0)
    manifest, paths = make(tmp_path, recorded=recorded)
    flip(paths[1], paths[1].stat().st_size - 1)
    windows = windows_of(tmp_path, manifest)
    windows.watch()
    deadline = time.monotonic() + 20
    while windows._blocks._failure is None and time.monotonic() < deadline:
        time.sleep(0.01)
    sentence = r"train-1\.npy (is not the token file|has id)"
    with pytest.raises(ConfigError, match=sentence):
        windows[0]


def test_a_file_that_shrinks_is_named(tmp_path):
    manifest, paths = make(tmp_path)
    windows = windows_of(tmp_path, manifest)
    assert windows[0].size
    paths[0].write_bytes(paths[0].read_bytes()[:1000])
    with pytest.raises(ConfigError, match=r"part-0\.npy is not the token file"):
        windows[20]


def test_an_id_beyond_the_vocabulary_is_named(tmp_path):
    manifest, paths = make(tmp_path)
    smaller = dataclasses.replace(manifest, vocab_size=1000)
    sentence = rf"{paths[0].name} has id \d+, and the vocabulary ends at 999"
    with pytest.raises(ConfigError, match=sentence):
        windows_of(tmp_path, smaller)[0]


def test_old_data_is_read_with_a_warning(tmp_path, capfd):
    manifest, _ = make(tmp_path, recorded=False)
    old = read(tmp_path)
    assert old == manifest
    assert old.framing() == {"eos_id": 0, "start_id": 0, "before": []}
    warning = "was made before framing and digests of blocks were recorded"
    assert warning in capfd.readouterr().err


def test_digests_of_pieces_join(tmp_path):
    content = np.random.default_rng(0).bytes(3 * BLOCK + 17)
    first, second = content[: 2 * BLOCK], content[2 * BLOCK :]
    assert digests(content) == digests(first) + digests(second)
    assert len(digests(content)) == 4 * blocks.DIGITS
