"""Hugging Face model folders that someone made to do harm.

They are refused in one sentence, soon and in little memory; nothing in them is executed.
"""

import dataclasses
import json
import os
import pickle
import resource
import shutil
import struct
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import safetensors.numpy

from sparsecod_jax.pretrained.exporting import export
from tests.support import saved_runs, tiny_configs, wrong_inputs

pytestmark = pytest.mark.faults

SECONDS = 20.0  # for each folder
MEMORY = 2**30  # bytes that a folder may add to the peak of all before it
TRIALS = int(os.environ.get("SPARSECOD_FAULT_TRIALS", "60"))  # of each property
SPRUNG = Path("/tmp/sparsecod-sprung")  # made by a pickle that is loaded


Spoil = Callable[[Path], object]  # changes a folder
ONE_LAYER = dataclasses.replace(tiny_configs.MODEL, n_layers=1)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """An export without digests."""
    folder = tmp_path_factory.mktemp("original")
    run = saved_runs.run(folder / "run", ONE_LAYER)
    export(str(run.path), str(folder / "hf"))
    (folder / "hf" / "digests.json").unlink()
    return folder / "hf"


def _header(folder: Path) -> tuple[dict, bytes]:
    """Header and body of the file of weights."""
    content = (folder / "model.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def _write(
    folder: Path, header: dict | bytes, body: bytes, size: int | None = None
) -> None:
    """Writes a file of weights, whose header may claim another size."""
    if isinstance(header, dict):
        header = json.dumps(header).encode()
    if size is None:
        size = len(header)
    content = struct.pack("<Q", size) + header + body
    (folder / "model.safetensors").write_bytes(content)


def _config(**changes) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / "config.json"
        values = json.loads(path.read_text()) | changes
        path.write_text(json.dumps(values))

    return spoil


def _tensor(**values) -> Spoil:
    def spoil(folder: Path) -> None:
        header, body = _header(folder)
        header["lm_head.weight"] |= values
        _write(folder, header, body)

    return spoil


def _content(name: str, content: bytes) -> Spoil:
    return lambda folder: (folder / name).write_bytes(content)


def _instead(name: str, make: Spoil) -> Spoil:
    """Removes a file, and makes something else with its path."""

    def spoil(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return spoil


def _index(files: object) -> Spoil:
    """Writes an index of tensors in files."""

    def spoil(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "one.safetensors")
        index = json.dumps({"weight_map": files})
        (folder / "model.safetensors.index.json").write_text(index)

    return spoil


class _Trap:
    def __reduce__(self):
        return os.system, (f"touch {SPRUNG}",)


def _sparse(file: Path) -> None:
    with open(file, "wb") as opened:
        opened.truncate(2**40)


SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
    "head_dim",
)
NAMES = ("config.json", "model.safetensors", "tokenizer.json")
HOSTILE: dict[str, Spoil] = {
    **{
        f"{name} is {value}": _config(**{name: value})
        for name in SIZES
        for value in (10**9, 10**12, -1, True, "many", [1], 1.5)
    },
    **{
        f"{name} is a link": _instead(name, lambda file: file.symlink_to("/etc/passwd"))
        for name in NAMES
    },
    **{f"{name} is a pipe": _instead(name, os.mkfifo) for name in NAMES},
    **{f"{name} is a folder": _instead(name, os.mkdir) for name in NAMES},
    **{
        f"{name} is a device": _instead(name, lambda file: file.symlink_to("/dev/zero"))
        for name in NAMES
    },
    **{f"{name} has a tebibyte": _instead(name, _sparse) for name in NAMES},
    **{f"{name} is deep": _content(name, b"[" * 10**6) for name in NAMES},
    **{f"{name} is empty": _content(name, b"") for name in NAMES},
    **{
        f"{name} has a huge number": _content(name, b'{"a": ' + b"9" * 10**5 + b"}")
        for name in NAMES
    },
    **{
        f"a header of {size} bytes": lambda folder, size=size: _write(
            folder, *_header(folder), size
        )
        for size in (0, 1, 2**31, 2**63, 2**64 - 1)
    },
    "a header that is deep": lambda folder: _write(folder, b'{"a":' * 10**5, b""),
    "offsets that overlap": _tensor(data_offsets=[4, 304 * 32 * 4 + 4]),
    "offsets that end before they begin": _tensor(data_offsets=[100, 0]),
    "offsets beyond the file": _tensor(data_offsets=[2**60, 2**60 + 304 * 32 * 4]),
    "offsets below zero": _tensor(data_offsets=[-8, 304 * 32 * 4 - 8]),
    "a shape that overflows": _tensor(shape=[2**62, 2**62]),
    "a shape of words": _tensor(shape=["304", 32]),
    "another dtype": _tensor(dtype="I8"),
    "an unknown dtype": _tensor(dtype="F4_HOSTILE"),
    "an index that leads out": _index({"lm_head.weight": "../../etc/passwd"}),
    "an absolute index": _index({"lm_head.weight": "/etc/passwd"}),
    "an index of numbers": _index({"lm_head.weight": 3}),
    "an index that is a list": _index([1, 2]),
    "an index with a zero": _index({"lm_head.weight": "a\0b"}),
    "an index of a hundred thousand files": _index(
        {f"t{number}": f"{number}.safetensors" for number in range(10**5)}
    ),
    "an index with terminal escapes": _index({"lm_head.weight": "\x1b]0;owned\x07"}),
    "code by auto_map": _config(auto_map={"AutoConfig": "evil.Config"}),
    "code in the tokenizer's settings": _content(
        "tokenizer_config.json", b'{"auto_map": {"AutoTokenizer": ["evil.T", null]}}'
    ),
    "a pickle instead of weights": _instead(
        "model.safetensors",
        lambda file: file.with_name("pytorch_model.bin").write_bytes(
            pickle.dumps(_Trap())
        ),
    ),
    "a pickle named safetensors": _content("model.safetensors", pickle.dumps(_Trap())),
    "a linked card": _instead("README.md", lambda file: file.symlink_to("/etc/passwd")),
    "digests that are a list": _content("digests.json", b"[]"),
    "digests of other files": _content(
        "digests.json", b'{"tensors": {}, "files": {"config.json": "0"}}'
    ),
    "an unknown architecture": _config(architectures=["\x1b[31mEvil"]),
    "quantised": _config(quantization_config={"load_in_4bit": True}),
    "rotary traps": _config(rope_theta="1" * 10**5),
    "no number": _config(rms_norm_eps=float("nan")),
}


def _complaint(folder: Path, out: Path) -> str | None:
    """What is wrong with how a folder is refused."""
    began = time.monotonic()
    before = _peak_bytes()
    failure = wrong_inputs.complaint(["import", f"--hf={folder}", f"--workdir={out}"])
    seconds = time.monotonic() - began
    added = _peak_bytes() - before
    if seconds > SECONDS or added > MEMORY:
        return f"{seconds:.1f} s, {added / 2**20:.0f} MiB"
    if not failure and out.exists():
        return f"{out} was made"
    return failure


def _peak_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_hostile_folders(original, tmp_path):
    failures = {}
    for number, (name, spoil) in enumerate(HOSTILE.items()):
        folder = Path(shutil.copytree(original, tmp_path / f"{number}"))
        out = tmp_path / "out"
        spoil(folder)
        if failure := _complaint(folder, out):
            failures[name] = failure
        for path in (folder, out):
            shutil.rmtree(path, ignore_errors=True)
    print(
        f"\nhostile folders: {len(HOSTILE)} tried, {len(failures)} not refused as they"
        " should be"
    )
    assert not failures, wrong_inputs.report(failures)
    assert len(HOSTILE) >= 100
    assert not SPRUNG.exists()


FIXTURES: Any = [
    hypothesis.HealthCheck.function_scoped_fixture,
    hypothesis.HealthCheck.too_slow,
]
SETTINGS = hypothesis.settings(
    max_examples=TRIALS,
    deadline=None,
    suppress_health_check=FIXTURES,
    derandomize=True,
    database=None,
)
numbers = st.integers(-(2**66), 2**66) | st.floats() | st.text(max_size=3) | st.none()
entries = st.fixed_dictionaries(
    {"dtype": st.sampled_from(["F32", "BF16", "F64", "I8", "BOOL", "X", ""]) | numbers},
    optional={
        "shape": st.lists(numbers, max_size=4) | numbers,
        "data_offsets": st.lists(numbers, max_size=3) | numbers,
        "more": numbers,
    },
)


@SETTINGS
@hypothesis.given(
    name=st.sampled_from(["lm_head.weight", "model.norm.weight"]), entry=entries
)
def test_headers_of_any_kind(original, tmp_path_factory, name, entry):
    folder = Path(shutil.copytree(original, tmp_path_factory.mktemp("any") / "hf"))
    header, body = _header(folder)
    _write(folder, header | {name: entry}, body)
    assert _complaint(folder, folder.parent / "out") is None
    shutil.rmtree(folder)


@SETTINGS
@hypothesis.given(data=st.binary(max_size=200), start=st.integers(0, 3000))
def test_bytes_of_any_kind_in_the_header(original, tmp_path_factory, data, start):
    """They are refused; or harmless, where they replace what nobody reads."""
    folder = Path(shutil.copytree(original, tmp_path_factory.mktemp("any") / "hf"))
    content = (folder / "model.safetensors").read_bytes()
    spoilt = content[:start] + data + content[start + len(data) + 1 :]
    (folder / "model.safetensors").write_bytes(spoilt)
    assert _complaint(folder, folder.parent / "out") is None
    shutil.rmtree(folder)


def test_flips_in_every_file_of_an_export_are_noticed(tmp_path):
    """One bit at a time, evenly over each file, with the digests that an export has."""
    run = saved_runs.run(tmp_path / "run", ONE_LAYER)
    folder = Path(export(str(run.path), str(tmp_path / "hf")))
    out = tmp_path / "out"
    words = ["import", f"--hf={folder}", f"--workdir={out}"]
    count = TRIALS // 4  # in each file
    tried, silent = Counter(), {}
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        for trial in range(count):
            position = len(content) * trial // count
            flipped = bytearray(content)
            flipped[position] ^= 1 << trial % 8
            file.write_bytes(flipped)
            tried[file.name] += 1
            failure = wrong_inputs.complaint(words)
            accepted = failure and failure.startswith("exit code 0")
            if failure and not (accepted and _harmless(file)):
                silent[f"{file.name} {position}"] = failure
            shutil.rmtree(out, ignore_errors=True)
        file.write_bytes(content)
    print(
        f"\nflips in an export: {tried.total()} tried ({dict(tried)}),"
        f" {len(silent)} silent"
    )
    assert not silent, wrong_inputs.report(silent)


def _harmless(file: Path) -> bool:
    """Whether a change of this file may be accepted.

    A card is for people, and a change of it is reported; in a header of weights some bytes
    mean nothing.
    """
    if file.name == "README.md":
        return True
    return file.name == "model.safetensors" and bool(safetensors.numpy.load_file(file))
