"""How does a run become a folder of Hugging Face? The verb `export`.

Nothing in the folder depends on when or where it was made, so exporting again gives the same bytes.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from typing import Any, Literal

import jax
import ml_dtypes
import numpy as np
import safetensors.numpy
from etils import epath

from sparsecod_jax.config import Model
from sparsecod_jax.data.tokenizer import TOKENIZER, Tokenizer
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.parallel.processes import log_phase
from sparsecod_jax.pretrained import card, hf_files
from sparsecod_jax.pretrained.hf_config import to_config
from sparsecod_jax.pretrained.hf_files import DIGESTS
from sparsecod_jax.pretrained.hf_folder import CONFIG, INDEX, WEIGHTS, digest
from sparsecod_jax.pretrained.hf_tensors import Tensor, tensors, to_theirs
from sparsecod_jax.pretrained.load import find_model, load_model
from sparsecod_jax.storage import files, records
from sparsecod_jax.storage.digest import names
from sparsecod_jax.storage.records import read_record
from sparsecod_jax.storage.rundir import RunDir

Dtype = Literal["float32", "bfloat16", "float16"]
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
SHARD_BYTES = 5 * 10**9
CARD = "README.md"


def export(
    workdir: str, out: str, *, dtype: Dtype = "float32", shard_bytes: int = SHARD_BYTES
) -> epath.Path:
    """Writes the newest checkpoint that verifies as a folder that stock transformers load, and returns its path.

    Args:
      out: the folder to make; it appears when all of it has been written.
      dtype: of the weights. Ours are float32, which alone keeps every bit.
      shard_bytes: the most that one file of weights may hold.

    Raises:
      ConfigError: the run can't be used, or `out` is there already; nothing was written. Or a value is too large for `dtype`.
    """
    run, target = RunDir(files.absolute(workdir)), files.absolute(out)
    source = find_model(workdir)
    if target.exists():
        raise ConfigError(f"{target} is there already: choose another --out")
    tokenizer = source.tokenizer()
    described = to_config(
        source.model, source.max_seq_len, dtype, tokenizer.eos_id, tokenizer.start_id
    )
    words = _settings(tokenizer, source.max_seq_len) | _words(run)
    model = load_model(source)
    with files.new_folder(target) as folder:
        records.write_json(folder / CONFIG, described)
        digests = _write_weights(folder, source.model, model.params, dtype, shard_bytes)
        for name, content in {
            TOKENIZER: _tokenizer(run, tokenizer),
            **words,
            CARD: words.get(CARD) or card.write(run, model).encode(),
        }.items():
            files.write(folder / name, content)
        records.write_record(
            folder / DIGESTS, {"tensors": digests, "files": _digests_of_files(folder)}
        )
    log_phase(f"step {model.step} of {run.path} as {dtype}")
    return target


def _words(run: RunDir) -> dict[str, bytes]:
    """What the folder of an import said about itself; anyone may have made the run."""
    if not run.origin.exists():
        return {}
    if os.path.islink(run.origin) or not run.origin.is_dir():
        raise ConfigError(
            f"{run.origin} is not a folder of the run itself: get the run from a source that you trust"
        )
    return hf_files.read_words(run.origin, {})


def _tokenizer(run: RunDir, tokenizer: Tokenizer) -> bytes:
    """Its file: of an import as it came, of a run of ours with what training saw before a text and nothing else around it."""
    imported = "imported" in read_record(run.manifest)
    return run.tokenizer.read_bytes() if imported else tokenizer.stock()


def _settings(tokenizer: Tokenizer, max_seq_len: int) -> dict[str, bytes]:
    """How stock code is to use tokenizer and model, by file."""
    start, end = (
        tokenizer.inner.id_to_token(token)
        for token in (tokenizer.start_id, tokenizer.eos_id)
    )
    usage = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": start,
        "eos_token": end,
        "model_max_length": max_seq_len,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,  # a text that spells one stays text, as in training
    }
    ids = {"bos_token_id": tokenizer.start_id, "eos_token_id": tokenizer.eos_id}
    files_of = {"tokenizer_config.json": usage, "generation_config.json": ids}
    return {
        name: json.dumps(values, indent=1).encode() for name, values in files_of.items()
    }


def _digests_of_files(folder: epath.Path) -> dict[str, str]:
    """Of all files but those of weights, whose tensors have their own."""
    listed = sorted(file for file in folder.iterdir() if file.suffix != ".safetensors")
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in listed}


def _write_weights(
    folder: epath.Path, model: Model, params: Any, dtype: Dtype, shard_bytes: int
) -> dict[str, str]:
    """One file, or several and an index of them, of which one is in memory at a time; returns the digest of each tensor."""
    shards = list(_shards(model, np.dtype(DTYPES[dtype]).itemsize, shard_bytes))
    leaves = dict(zip(names(params), jax.tree.leaves(params), strict=True))
    places, digests = {}, {}
    for number, shard in enumerate(shards):
        file = (
            WEIGHTS
            if len(shards) == 1
            else f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        )
        values = {tensor.name: _values(tensor, leaves, dtype) for tensor in shard}
        safetensors.numpy.save_file(
            values, os.fspath(folder / file), metadata={"format": "pt"}
        )
        shutil.copymode(
            folder / CONFIG, folder / file
        )  # the library lets only its caller read the file
        places |= dict.fromkeys(values, file)
        digests |= {name: digest(value) for name, value in values.items()}
    if len(shards) > 1:
        total = (
            sum(np.prod(tensor.shape, dtype=int) for tensor in tensors(model))
            * np.dtype(DTYPES[dtype]).itemsize
        )
        records.write_json(
            folder / INDEX,
            {"metadata": {"total_size": int(total)}, "weight_map": places},
        )
    return digests


def _shards(model: Model, itemsize: int, shard_bytes: int) -> Iterator[list[Tensor]]:
    """The tensors in order, as many at a time as fit; a larger one is alone."""
    shard, size = [], 0
    for tensor in tensors(model):
        own = int(np.prod(tensor.shape)) * itemsize
        if shard and size + own > shard_bytes:
            yield shard
            shard, size = [], 0
        shard.append(tensor)
        size += own
    yield shard


def _values(tensor: Tensor, leaves: dict[str, jax.Array], dtype: Dtype) -> np.ndarray:
    if not tensor.path:
        return np.zeros(tensor.shape, DTYPES[dtype])
    values = to_theirs(tensor, np.asarray(_part(leaves[tensor.path], tensor.index)))
    if not np.isfinite(values).all():
        raise ConfigError(
            f"{tensor.name} has values that are not finite: the run has diverged, export an earlier one"
        )
    with np.errstate(over="ignore"):  # what overflows is refused
        cast = np.ascontiguousarray(values.astype(DTYPES[dtype]))
    if not np.isfinite(cast).all():
        raise ConfigError(
            f"{tensor.name} reaches {np.abs(values).max():g}, which {dtype} does not hold: export another --dtype"
        )
    return cast


@jax.jit
def _part(leaf: jax.Array, index: tuple[int, ...]) -> jax.Array:
    """The part of one layer, or expert; compiled once a parameter, as the numbers are arguments."""
    return leaf[index]
