"""Which sequences is a model looked at with? Those of a file, or some that are drawn from data. N sequences, T positions."""

import io
from typing import Any

import numpy as np
from etils import epath

from sparsecod_jax.data.store import Manifest, Windows, prepare_command, read_manifest
from sparsecod_jax.data.tokenizer import TOKENIZER
from sparsecod_jax.data.tokenizer import load as load_tokenizer
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.pretrained.load import ModelSource
from sparsecod_jax.storage import files

SEQUENCES, SEQ_LEN, SPLIT = 100, 512, "validation"  # unless asked for otherwise


def choose(
    source: ModelSource,
    *,
    tokens: str | None,
    data: str | None,
    sequences: int | None,
    seq_len: int | None,
    split: str | None,
    seed: int,
) -> tuple[np.ndarray, dict[str, Any]]:
    """The sequences, integers [N, T], and where they come from: the options of `analyze`.

    Raises:
      ConfigError: the options contradict one another, or what they name can't be used.
    """
    if tokens is not None:
        asked = {
            "--data": data,
            "--sequences": sequences,
            "--seq_len": seq_len,
            "--split": split,
        }
        given = [name for name, value in asked.items() if value is not None]
        if given:
            raise ConfigError(
                f"--tokens says which sequences are scored, so {' and '.join(given)} can't: leave one out"
            )
        return _of_file(tokens), {"seed": seed}
    count, length = (
        default if value is None else value
        for value, default in ((sequences, SEQUENCES), (seq_len, SEQ_LEN))
    )
    if min(count, length) < 2:
        raise ConfigError(
            f"{count} sequences of {length} tokens can't be scored: give --sequences and --seq_len of at least 2"
        )
    split = split or SPLIT
    return draw(*_data(source, data), split, count, length, seed), {
        "split": split,
        "seed": seed,
    }


def draw(
    directory: epath.Path,
    manifest: Manifest,
    split: str,
    sequences: int,
    seq_len: int,
    seed: int,
) -> np.ndarray:
    """`sequences` windows of `seq_len` tokens, [N, T] int32, drawn without replacement from a split of the data.

    Raises:
      ConfigError: the split has too few such windows.
    """
    windows = Windows(directory, manifest, dict(manifest.splits())[split], seq_len - 1)
    if len(windows) < sequences:
        raise ConfigError(
            f"the {split} split has {len(windows)} windows of {seq_len} tokens, not {sequences}: lower --sequences or --seq_len"
        )
    chosen = np.random.default_rng(seed).choice(len(windows), sequences, replace=False)
    return np.stack([windows[number] for number in chosen])


def _data(source: ModelSource, named: str | None) -> tuple[epath.Path, Manifest]:
    """The data that is named, if it has the model's tokenizer; else that on which the model was trained."""
    if named is None:
        if source.experiment is None:
            raise ConfigError(
                f"{source.path} does not tell its data: name some with --data, or give --tokens"
            )
        directory = files.absolute(source.experiment.data.path)
        return directory, read_manifest(directory, prepare_command(source.experiment))
    directory = files.absolute(named)
    command = f"sparsecod data --source=... --tokenizer={source.path / TOKENIZER} --out={named}"
    manifest = read_manifest(directory, command)
    if (
        load_tokenizer(directory / TOKENIZER, manifest.eos_id).rules
        != source.tokenizer().rules
    ):
        raise ConfigError(
            f"{directory} was made with another tokenizer than the model's: make some with `{command}`"
        )
    return directory, manifest


def _of_file(tokens: str) -> np.ndarray:
    try:
        tokens_NT = np.load(
            io.BytesIO(files.absolute(tokens).read_bytes()), allow_pickle=False
        )
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(
            f"--tokens={tokens} can't be read ({error}): give an .npy file of integers [N, T]"
        ) from error
    shape = getattr(tokens_NT, "shape", ())
    if (
        len(shape) != 2
        or not np.issubdtype(tokens_NT.dtype, np.integer)
        or min(shape) < 2
    ):
        raise ConfigError(
            f"--tokens={tokens} does not hold integers [N, T], both at least 2: give such an .npy file"
        )
    return tokens_NT
