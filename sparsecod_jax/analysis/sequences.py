"""Which sequences is a model analysed with?

Token sequences: those of a file, or windows that are drawn from data.

N sequences, T positions.
"""

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

SEQUENCES, SEQ_LEN, SPLIT = 100, 512, "validation"  # where no option is given


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
    """The sequences that the options of `analyze` name.

    Returns:
      Integers [N, T], and where they come from, for scores.json.

    Raises:
      ConfigError: the options contradict one another, or what they name can't be used.
    """
    if tokens is not None:
        _check_no_others(
            data_dir=data, sequences=sequences, seq_len=seq_len, split=split
        )
        return _read_file(tokens), {"seed": seed}
    if sequences is None:
        sequences = SEQUENCES
    if seq_len is None:
        seq_len = SEQ_LEN
    if min(sequences, seq_len) < 2:
        raise ConfigError(
            f"{sequences} sequences of {seq_len} tokens can't be scored:"
            " give --sequences and --seq_len of at least 2"
        )
    split = split or SPLIT
    directory, manifest = _find_data(source, data)
    tokens_NT = draw(directory, manifest, split, sequences, seq_len, seed)
    return tokens_NT, {"split": split, "seed": seed}


def _check_no_others(**options: Any) -> None:
    """Refuses options that --token_file leaves no room for."""
    given = [f"--{name}" for name, value in options.items() if value is not None]
    if given:
        raise ConfigError(
            f"--token_file says which sequences are scored, so {' and '.join(given)} can't:"
            " leave one out"
        )


def draw(
    directory: epath.Path,
    manifest: Manifest,
    split: str,
    sequences: int,
    seq_len: int,
    seed: int,
) -> np.ndarray:
    """Windows drawn without replacement from a split of the data, [N, T] int32.

    Args:
      sequences: N.
      seq_len: T, tokens.

    Raises:
      ConfigError: the split has too few such windows.
    """
    # A window has one token more than the length that it is named by.
    windows = Windows(directory, manifest, dict(manifest.splits())[split], seq_len - 1)
    if len(windows) < sequences:
        raise ConfigError(
            f"the {split} split has {len(windows)} windows of {seq_len} tokens,"
            f" not {sequences}: lower --sequences or --seq_len"
        )
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(windows), sequences, replace=False)
    return np.stack([windows[number] for number in chosen])


def _find_data(source: ModelSource, data: str | None) -> tuple[epath.Path, Manifest]:
    """The data at `data`, if it has the model's tokenizer; else the model's training data."""
    if data is not None:
        return _other_data(source, data)
    if source.experiment is None:
        raise ConfigError(
            f"{source.path} does not tell its data:"
            " name some with --data_dir, or give --token_file"
        )
    directory = files.absolute(source.experiment.data.path)
    return directory, read_manifest(directory, prepare_command(source.experiment))


def _other_data(source: ModelSource, data: str) -> tuple[epath.Path, Manifest]:
    """Data that the model was not trained on, which has to have its ids."""
    directory = files.absolute(data)
    own_tokenizer = source.path / TOKENIZER
    command = f"sparsecod data --source=... --tokenizer={own_tokenizer} --out={data}"
    manifest = read_manifest(directory, command)
    tokenizer = load_tokenizer(directory / TOKENIZER, manifest.eos_id)
    if tokenizer.rules != source.tokenizer().rules:
        raise ConfigError(
            f"{directory} was made with another tokenizer than the model's:"
            f" make some with `{command}`"
        )
    return directory, manifest


def _read_file(tokens: str) -> np.ndarray:
    """The array in an .npy file, [N, T]."""
    try:
        content = files.absolute(tokens).read_bytes()
        tokens_NT = np.load(io.BytesIO(content), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(
            f"--token_file={tokens} can't be read ({error}):"
            " give an .npy file of integers [N, T]"
        ) from error
    if not _is_sequences(tokens_NT):
        raise ConfigError(
            f"--token_file={tokens} does not hold integers [N, T], both at least 2:"
            " give such an .npy file"
        )
    return tokens_NT


def _is_sequences(array: Any) -> bool:
    if not isinstance(array, np.ndarray):  # an archive of several arrays
        return False
    return (
        array.ndim == 2
        and np.issubdtype(array.dtype, np.integer)
        and min(array.shape) >= 2
    )
