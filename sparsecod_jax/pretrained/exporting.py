"""How does a run become a Hugging Face model folder? The subcommand `export`.

Export: nothing in the folder depends on when or where it was made, so exporting again
gives the same bytes.
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
from sparsecod_jax.pretrained.hf_files import DIGESTS, Digests
from sparsecod_jax.pretrained.hf_folder import CONFIG, INDEX, WEIGHTS, digest
from sparsecod_jax.pretrained.hf_tensors import Tensor, tensors, to_theirs
from sparsecod_jax.pretrained.load import find_model, load_model
from sparsecod_jax.storage import files, records
from sparsecod_jax.storage.records import read_record
from sparsecod_jax.storage.rundir import RunDir
from sparsecod_jax.tree import names

Dtype = Literal["float32", "bfloat16", "float16"]
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
SHARD_BYTES = 5 * 10**9
CARD = "README.md"


def export(
    workdir: str, out: str, *, dtype: Dtype = "float32", shard_bytes: int = SHARD_BYTES
) -> epath.Path:
    """Writes the newest checkpoint that verifies as a folder that stock transformers load.

    Args:
      workdir: the run.
      out: the folder to make; it appears when all of it has been written.
      dtype: of the weights. Ours are float32, which alone keeps every bit.
      shard_bytes: the most that one file of weights may hold.

    Returns:
      The path of the folder.

    Raises:
      ConfigError: the run can't be used, or `out` is there already; nothing was written. Or
        a value is too large for `dtype`.
    """
    run, target = RunDir(files.absolute(workdir)), files.absolute(out)
    source = find_model(workdir)
    if target.exists():
        raise ConfigError(f"{target} is there already: choose another --out")
    tokenizer = source.tokenizer()
    config = to_config(
        source.model, source.max_seq_len, dtype, tokenizer.eos_id, tokenizer.start_id
    )
    # Read before anything is written, as each of them may be refused.
    contents = {TOKENIZER: _tokenizer_file(run, tokenizer)}
    contents |= _settings(tokenizer, source.max_seq_len)
    # What an imported model brought along wins over what would be written for it.
    contents |= _imported_side_files(run)
    model = load_model(source)
    if CARD not in contents:
        contents[CARD] = card.write(run, model).encode()
    with files.new_folder(target) as folder:
        records.write_json(folder / CONFIG, config)
        digests = _write_weights(folder, source.model, model.params, dtype, shard_bytes)
        for name, content in contents.items():
            files.write(folder / name, content)
        record = {"tensors": digests, "files": _file_digests(folder)}
        records.write_record(folder / DIGESTS, record)
    log_phase(f"step {model.step} of {run.path} as {dtype}")
    return target


def _imported_side_files(run: RunDir) -> dict[str, bytes]:
    """Card, licence and settings of an imported model; anyone may have made the run."""
    if not run.origin.exists():
        return {}
    if os.path.islink(run.origin) or not run.origin.is_dir():
        raise ConfigError(
            f"{run.origin} is not a folder of the run itself:"
            " get the run from a source that you trust"
        )
    return hf_files.read_side_files(run.origin, digests={})


def _tokenizer_file(run: RunDir, tokenizer: Tokenizer) -> bytes:
    """Of an import as it came; else with what training saw before a text and nothing else."""
    if "imported" in read_record(run.manifest):
        return run.tokenizer.read_bytes()
    return tokenizer.stock()


def _settings(tokenizer: Tokenizer, max_seq_len: int) -> dict[str, bytes]:
    """How stock code is to use tokenizer and model, by file."""
    usage = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokenizer.inner.id_to_token(tokenizer.start_id),
        "eos_token": tokenizer.inner.id_to_token(tokenizer.eos_id),
        "model_max_length": max_seq_len,
        "clean_up_tokenization_spaces": False,
        # A text that spells a special token stays text, as in training.
        "split_special_tokens": True,
    }
    ids = {"bos_token_id": tokenizer.start_id, "eos_token_id": tokenizer.eos_id}
    return {
        "tokenizer_config.json": json.dumps(usage, indent=1).encode(),
        "generation_config.json": json.dumps(ids, indent=1).encode(),
    }


def _file_digests(folder: epath.Path) -> Digests:
    """Of all files but those of weights, whose tensors have their own."""
    listed = sorted(file for file in folder.iterdir() if file.suffix != ".safetensors")
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in listed}


def _write_weights(
    folder: epath.Path, model: Model, params: Any, dtype: Dtype, shard_bytes: int
) -> Digests:
    """Writes one file, or several and an index of them.

    Args:
      shard_bytes: the most that one file may hold, unless a single tensor is larger.

    Returns:
      The digest of each tensor.
    """
    itemsize = np.dtype(DTYPES[dtype]).itemsize
    shards = list(_shards(model, itemsize, shard_bytes))
    leaves = dict(zip(names(params), jax.tree.leaves(params), strict=True))
    left_out = leaves.keys() - {tensor.path for tensor in tensors(model)}
    if left_out:
        raise ConfigError(
            f"no tensor of the stock architecture holds {', '.join(sorted(left_out))}:"
            " such a model can't be exported"
        )
    file_of, digests = {}, {}
    for number, shard in enumerate(shards):
        # The arrays of one file are in memory at a time.
        file = _shard_name(number, len(shards))
        values = {tensor.name: _values(tensor, leaves, dtype) for tensor in shard}
        safetensors.numpy.save_file(
            values, os.fspath(folder / file), metadata={"format": "pt"}
        )
        # The library lets only its caller read the file.
        shutil.copymode(folder / CONFIG, folder / file)
        file_of |= dict.fromkeys(values, file)
        digests |= {name: digest(value) for name, value in values.items()}
    # Several files need an index of which tensor is where.
    if len(shards) > 1:
        numbers = sum(_size(tensor) for tensor in tensors(model))
        metadata = {"total_size": numbers * itemsize}
        index = {"metadata": metadata, "weight_map": file_of}
        records.write_json(folder / INDEX, index)
    return digests


def _shard_name(number: int, count: int) -> str:
    """As transformers names the files of weights."""
    if count == 1:
        return WEIGHTS
    return f"model-{number + 1:05d}-of-{count:05d}.safetensors"


def _size(tensor: Tensor) -> int:
    """How many numbers a tensor holds."""
    return int(np.prod(tensor.shape, dtype=int))


def _shards(model: Model, itemsize: int, shard_bytes: int) -> Iterator[list[Tensor]]:
    """The tensors in order, as many at a time as fit in a file; a larger one is alone.

    Args:
      itemsize: bytes of a number.
    """
    shard, shard_size = [], 0
    for tensor in tensors(model):
        size = _size(tensor) * itemsize
        if shard and shard_size + size > shard_bytes:
            yield shard
            shard, shard_size = [], 0
        shard.append(tensor)
        shard_size += size
    yield shard


def _values(tensor: Tensor, leaves: dict[str, jax.Array], dtype: Dtype) -> np.ndarray:
    """The numbers of one of their tensors.

    Args:
      leaves: our parameters, by name, stacked over layers (and experts).

    Raises:
      ConfigError: some are not finite, or too large for `dtype`.
    """
    # Only their architecture has it, and it must be without effect.
    if not tensor.path:
        return np.zeros(tensor.shape, DTYPES[dtype])
    ours = _part(leaves[tensor.path], tensor.part)
    values = to_theirs(tensor, np.asarray(ours))
    if not np.isfinite(values).all():
        raise ConfigError(
            f"{tensor.name} has values that are not finite:"
            " the run has diverged, export an earlier one"
        )
    # What overflows becomes infinite, and is refused below.
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(values.astype(DTYPES[dtype]))
    if not np.isfinite(cast).all():
        raise ConfigError(
            f"{tensor.name} reaches {np.abs(values).max():g}, which {dtype} does not hold:"
            " export another --dtype"
        )
    return cast


@jax.jit
def _part(leaf: jax.Array, index: tuple[int, ...]) -> jax.Array:
    """The part of one layer, or expert.

    Compiled once per parameter, as the numbers in `index` are arguments.
    """
    return leaf[index]
