"""One flipped bit in any file that was made.

Every reader names the damage, or reads what was written.
"""

import contextlib
import dataclasses
import io
import json
import shutil
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import pytest
from etils import epath

from sparsecod_jax.analysis.scores import analyze
from sparsecod_jax.config.identity import identity_fields
from sparsecod_jax.data.store import Windows, read_manifest
from sparsecod_jax.data.tokenizer import TOKENIZER
from sparsecod_jax.data.tokenizer import load as load_tokenizer
from sparsecod_jax.errors import SparsecodError
from sparsecod_jax.pretrained import card
from sparsecod_jax.pretrained.exporting import export
from sparsecod_jax.pretrained.load import find_model, load_model
from sparsecod_jax.report.runs import load_run
from sparsecod_jax.storage.checkpoint import Checkpointer
from sparsecod_jax.storage.digest import digests
from sparsecod_jax.storage.rundir import RunDir, check_identity
from sparsecod_jax.train import loop
from sparsecod_jax.train.result import read_result
from sparsecod_jax.train.step import build
from tests.support import faults, tiny_configs

pytestmark = pytest.mark.faults

USUAL = 10  # flips of each kind of file

KINDS = {
    "config.json": "config.json",
    "manifest.json": "manifest.json",
    "status.json": "status.json",
    "final.json": "final.json",
    "committed.json": "committed.json",
    "attempts": "attempts/*",
    "tokenizer.json": "tokenizer.json",
    "metrics.jsonl": "metrics.jsonl",
    "TensorBoard": "tensorboard/*",
    "scores.json": "analysis/scores.json",
    "tokens.npy": "analysis/tokens.npy",
    "arrays": "checkpoints/*/state/d/*",
    # Orbax has copied them to those above.
    "each process's arrays": "checkpoints/*/state/ocdbt.process_0/**/*",
    "what describes arrays": "checkpoints/*/state/*",
    "sealed record": "checkpoints/*/record/metadata",
    "what describes a checkpoint": "checkpoints/*/*",
}


@dataclasses.dataclass(frozen=True)
class Trained:
    """A finished run with scores, and what is needed to resume it."""

    run: RunDir
    experiment: Any
    fields: dict[str, Any]
    abstract: Any


@pytest.fixture(scope="module")
def trained(tokens, tmp_path_factory):
    run = RunDir(epath.Path(tmp_path_factory.mktemp("flips")) / "run")
    experiment = tiny_configs.experiment(
        data={"path": str(tokens)}, evaluation={"every": 2}, checkpoint={"every": 6}
    )
    loop.train(experiment, str(run.path))
    analyze(str(run.path), scores="profile,sparsity", sequences=4, seq_len=16)
    abstract = {"state": build(experiment, jax.devices()).abstract_state}
    fields = identity_fields(experiment, read_manifest(tokens, "").fingerprint)
    return Trained(run, experiment, fields, abstract)


def _resumed(trained: Trained) -> Any:
    """What an attempt resumes of a run that is not finished."""
    checkpointer = Checkpointer(trained.run, 3, read_only=True)
    with contextlib.closing(checkpointer):
        restored = checkpointer.restore_latest(trained.abstract)
    assert restored is not None
    return restored.step, restored.record, digests(restored.items)


def _continued(trained: Trained) -> Any:
    """What the same command does in the directory of a finished run."""
    check_identity(trained.run, trained.fields)
    begun = trained.run.begin_metrics(trained.experiment.steps)
    lines = [values for values, _ in begun]
    return read_result(trained.run, trained.fields), lines


def _loaded(trained: Trained) -> Any:
    """What scores, exports and evaluations begin with."""
    source = find_model(str(trained.run.path))
    model = load_model(source)
    text = card.write(trained.run, model)
    return model.weights, model.step, source.model, source.max_seq_len, text


def _tokenized(trained: Trained) -> Any:
    tokenizer = find_model(str(trained.run.path)).tokenizer()
    return tokenizer.inner.to_str(), tokenizer.eos_id, tokenizer.start_id


def _reported(trained: Trained) -> Any:
    values = dataclasses.asdict(load_run(trained.run))
    if values["status"] != "finished":
        print(f"the report shows: {values.pop('status')}")
    return values


READERS: list[Callable[[Trained], Any]] = [_continued, _tokenized, _reported]
RESTORING: list[Callable[[Trained], Any]] = [_resumed, _loaded]


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_of_a_run_is_named_or_harmless(kind, trained, tmp_path):
    readers = READERS
    if "checkpoints" in KINDS[kind]:
        readers = RESTORING
    elif kind == "config.json":
        readers = [*READERS, *RESTORING]
    folder = tmp_path / "run"
    shutil.copytree(trained.run.path, folder)
    copy = dataclasses.replace(trained, run=RunDir(epath.Path(folder)))
    _flip(kind, folder, KINDS[kind], [partial(reader, copy) for reader in readers])


@pytest.mark.parametrize(
    "kind", ["manifest.json", "tokenizer.json", "train-*", "validation-*"]
)
def test_a_flipped_bit_of_data_is_named_or_harmless(kind, tokens, tmp_path):
    shutil.copytree(tokens, tmp_path / "data")
    data = epath.Path(tmp_path) / "data"

    def everything():
        manifest = read_manifest(data, "command")
        tokenizer = load_tokenizer(data / TOKENIZER, manifest.eos_id)
        ids = []
        for _, split in manifest.splits():
            windows = Windows(data, manifest, split, 32)
            ids.append([windows[index].tolist() for index in range(len(windows))])
        return manifest.fingerprint, ids, tokenizer.inner.to_str()

    _flip(f"data, {kind}", tmp_path / "data", kind, [everything])


EXPORTED = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "README.md",
    "*_config.json",
)


@pytest.mark.parametrize("kind", EXPORTED)
def test_a_flipped_bit_of_an_export_is_named_or_harmless(kind, trained, tmp_path):
    """As import and `--hf` read it."""
    export(str(trained.run.path), str(tmp_path / "hf"))

    def loaded():
        source = find_model(hf=str(tmp_path / "hf"))
        tokenizer = source.tokenizer()
        return (
            load_model(source).weights,
            source.model,
            source.max_seq_len,
            tokenizer.inner.to_str(),
            tokenizer.eos_id,
        )

    _flip(f"export, {kind}", tmp_path / "hf", kind, [loaded])


def _flip(
    kind: str, folder: Path, pattern: str, readers: list[Callable[[], Any]]
) -> None:
    """Flips bits in these files; no reader may then silently read anything else."""
    intact = [_read(reader) for reader in readers]
    assert {named for named, _ in intact} == {""}
    paths = [path for path in folder.glob(pattern) if path.is_file()]
    paths = [path for path in paths if path.stat().st_size]
    assert paths, "there is no such file"
    dice, outcomes = faults.dice(), Counter()
    for _ in range(faults.trials(USUAL)):
        file = dice.choice(paths)
        content = file.read_bytes()
        bit = dice.randrange(8 * len(content))
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << (bit % 8)
        outcome = "harmless"
        for reader, (_, before) in zip(readers, intact, strict=True):
            file.write_bytes(flipped)
            named, after = _read(reader)
            assert named or after == before, f"bit {bit} of {file} is read silently"
            outcome = named or outcome
        outcomes[outcome] += 1
        file.write_bytes(content)
        for aside in folder.glob("metrics.jsonl-*"):
            aside.unlink()
    print(f"{kind}: {dict(outcomes)}, silent 0")


def _read(reader: Callable[[], Any]) -> tuple[str, Any]:
    """Whether any damage was named, and what was read."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            content = json.dumps(reader(), default=repr)
        except SparsecodError:
            return "named", None
    # Notes on progress begin with the time, in brackets.
    lines = output.getvalue().splitlines()
    warnings = [line for line in lines if not line.startswith("[")]
    return "named" if warnings else "", content
