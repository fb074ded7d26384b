"""How is a Hugging Face model folder read, if anyone may have made it?

Model folders: only plain files that lie in the folder itself are opened, only safetensors
are read, and all names, shapes and dtypes are compared with the model that config.json
describes before anything is allocated. Weights then go tensor by tensor into the layout of
the devices.
"""

import dataclasses
import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable
from functools import partial
from typing import Any

import jax
import numpy as np
import safetensors
from etils import epath

from sparsecod_jax.config import Model
from sparsecod_jax.data.tokenizer import TOKENIZER, Tokenizer
from sparsecod_jax.data.tokenizer import load as load_tokenizer
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.pretrained import hf_files
from sparsecod_jax.pretrained.hf_config import expert_width, from_config
from sparsecod_jax.pretrained.hf_files import Digests
from sparsecod_jax.pretrained.hf_tensors import Tensor, tensors, to_ours
from sparsecod_jax.shell.shown import shown, warn_once
from sparsecod_jax.storage import files
from sparsecod_jax.tree import names

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = ("F64", "F32", "F16", "BF16")
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")  # other formats of weights

Headers = dict[str, tuple[tuple[int, ...], str]]  # shape and dtype of each tensor


@dataclasses.dataclass(frozen=True)
class Folder:
    """A folder whose config, tensor names, shapes and dtypes fit one another.

    No weight has been read.

    Attributes:
      values: config.json.
      max_seq_len: tokens of a sequence.
      open_files: the open safetensors file of each tensor.
      digests: of tensors, by name, where an export left them.
      file_digests: of files, by name, likewise.
      verified: tensors whose digests were compared.
    """

    path: epath.Path
    values: dict[str, Any]
    model: Model
    max_seq_len: int
    open_files: dict[str, Any]
    digests: Digests
    file_digests: Digests
    verified: set[str] = dataclasses.field(default_factory=set)

    def tokenizer(self) -> Tokenizer:
        """Its tokenizer, which frames a text in its own way.

        Raises:
          ConfigError: there is none, or it has ids that the model has not.
        """
        hf_files.read(self.path, TOKENIZER, hf_files.LARGEST_JSON, self.file_digests)
        path = self.path / TOKENIZER
        eos_id, start_id = self._token("eos_token_id"), self._token("bos_token_id")
        tokenizer = load_tokenizer(path, eos_id, start_id, before=None)
        if tokenizer.vocab_size > self.model.vocab_size:
            raise ConfigError(
                f"{path} has {tokenizer.vocab_size} ids and the model"
                f" {self.model.vocab_size}: put the model's own there"
            )
        return tokenizer

    def side_files(self) -> dict[str, bytes]:
        """Card, licence and settings, by file name.

        Raises:
          ConfigError: one of them is too large, changed, or names code to be run.
        """
        return hf_files.read_side_files(self.path, self.file_digests)

    def _token(self, name: str) -> int | None:
        """The id of a token, the first of several; None where config.json has none."""
        value = self.values.get(name)
        first = value
        if isinstance(value, list) and value:
            first = value[0]
        if first is None:
            return None
        if type(first) is not int or not 0 <= first < self.model.vocab_size:
            raise ConfigError(
                f"config.json of {self.path} has {name}={str(value)[:80]}:"
                f" correct it to an id below {self.model.vocab_size}"
            )
        return first

    def parameters(self, abstract: Any) -> Any:
        """The weights as our parameters; at no time are they in memory twice.

        Args:
          abstract: a tree of their shapes and shardings.

        Raises:
          ConfigError: a tensor that our model has no parameter for is not zero.
        """
        if not self.digests:
            warn_once(
                f"{shown(self.path.name)} has no digests of its tensors:"
                " damage to their bits would not be noticed"
            )
        # All parts of a parameter together, so that its array is made once.
        parts: dict[str, list[Tensor]] = defaultdict(list)
        for tensor in tensors(self.model, expert_width(self.values)):
            parts[tensor.path].append(tensor)
        # What only their architecture has, such as biases, has to be without effect.
        for tensor in parts.pop("", []):
            if self._read(tensor).any():
                raise ConfigError(
                    f"{tensor.name} of {self.path} is not zero: of mixtures of experts"
                    " only those can be read that `sparsecod export` wrote"
                )
        leaves, tree = jax.tree.flatten(abstract)
        arrays = []
        for name, leaf in zip(names(abstract), leaves, strict=True):
            # Called once per device, with the part of the array that the device holds.
            fill = partial(self._fill, parts[name], leaf.shape)
            array = jax.make_array_from_callback(leaf.shape, leaf.sharding, fill)
            arrays.append(array)
        return jax.tree.unflatten(tree, arrays)

    def _fill(
        self, parts: list[Tensor], shape: tuple[int, ...], index: Any
    ) -> np.ndarray:
        """What one device holds of one of our parameters.

        Args:
          parts: the tensors that the parameter is made of, one per layer (and expert).
          shape: of the whole parameter.
          index: the slices of it that the device holds.
        """
        ranges = [
            range(*entry.indices(size))
            for entry, size in zip(index, shape, strict=True)
        ]
        filled = np.empty([len(held) for held in ranges], np.float32)
        for tensor in parts:
            # The leading axes of ours are the layer, or layer and expert.
            stacked = len(tensor.part)
            numbers = list(zip(tensor.part, ranges[:stacked], strict=True))
            if not all(number in held for number, held in numbers):
                continue  # another device holds it
            here = tuple(number - held.start for number, held in numbers)
            values = to_ours(tensor, self._read(tensor), shape[stacked:])
            filled[here] = values[index[stacked:]]
        return filled

    def _read(self, tensor: Tensor) -> np.ndarray:
        """A tensor in float32, after its digest and its numbers were checked."""
        name = tensor.name
        if name not in self.open_files:
            name = EMBEDDING  # as the head is tied to it
        stored = self.open_files[name].get_tensor(name)
        self._verify(name, stored)
        values = stored.astype(np.float32)
        if not np.isfinite(values).all():
            raise ConfigError(
                f"{name} of {self.path} has values that are not finite in float32:"
                " choose another checkpoint"
            )
        return values

    def _verify(self, name: str, stored: np.ndarray) -> None:
        """Compares a tensor with its digest, once."""
        if not self.digests or name in self.verified:
            return
        if self.digests.get(name) != digest(stored):
            raise ConfigError(
                f"{name} of {self.path} was changed after it was exported:"
                " copy the file that holds it again"
            )
        self.verified.add(name)


def digest(stored: np.ndarray) -> str:
    """SHA-256 of the bytes of a tensor as they are stored, in hexadecimal."""
    stored_bytes = np.ascontiguousarray(stored).view(np.uint8)
    return hashlib.sha256(stored_bytes.data).hexdigest()


def open_folder(path: epath.Path) -> Folder:
    """Reads the config and the headers of a Hugging Face model folder.

    Headers are the names, shapes and dtypes of tensors. No weight is read.

    Raises:
      ConfigError: the architecture is not one of ours, or a file is missing, elsewhere, no
        safetensors, or does not fit the config.
    """
    if files.is_remote(path) or not path.is_dir():
        raise ConfigError(
            f"{path} is not a folder on this machine:"
            " give --hf a local copy of the model"
        )
    digests, file_digests = hf_files.read_digests(path)
    values = hf_files.read_json(path, CONFIG, hf_files.LARGEST_SIDE_FILE, file_digests)
    model, max_seq_len = from_config(values)
    tied = values.get("tie_word_embeddings", False)
    if type(tied) is not bool:
        raise ConfigError(
            f"config.json of {path} has tie_word_embeddings={tied!r}:"
            " correct it to true or false"
        )
    open_files, headers = _read_headers(path, file_digests)
    # Where embedding and head are both there, transformers takes the head.
    shared_head = tied and HEAD not in headers
    expected = (
        tensor
        for tensor in tensors(model, expert_width(values))
        if not (shared_head and tensor.name == HEAD)
    )
    _compare(path, expected, headers)
    return Folder(path, values, model, max_seq_len, open_files, digests, file_digests)


def _read_headers(path: epath.Path, digests: Digests) -> tuple[dict[str, Any], Headers]:
    """The open file and the header of each tensor."""
    open_files, headers = {}, {}
    for file, listed in _weight_files(path, digests).items():
        opened, inside = _open(file)
        for name in listed:
            if name not in inside:
                raise ConfigError(
                    f"{file} lacks {name}, which the index places there: download it again"
                )
        for name in inside:
            if name in headers:
                raise ConfigError(
                    f"{file} has {name}, as another file does: download it again"
                )
        open_files |= dict.fromkeys(inside, opened)
        headers |= inside
    return open_files, headers


def _weight_files(path: epath.Path, digests: Digests) -> dict[epath.Path, list[str]]:
    """The files of weights, each with the tensors that an index places there.

    Raises:
      ConfigError: there are none, or it can't be known which ones are meant.
    """
    has_index, has_weights = (path / INDEX).exists(), (path / WEIGHTS).exists()
    if has_index and has_weights:
        raise ConfigError(
            f"{path} has both {WEIGHTS} and {INDEX}: delete the one that is not meant"
        )
    if has_index:
        return _indexed_files(path, digests)
    pickles = sorted(file.name for pattern in PICKLES for file in path.glob(pattern))
    if pickles and not has_weights:
        raise ConfigError(
            f"{path} has its weights in {pickles[0]}, which may run code when it is read:"
            " convert it to safetensors first"
        )
    return {hf_files.find(path, WEIGHTS): []}


def _indexed_files(path: epath.Path, digests: Digests) -> dict[epath.Path, list[str]]:
    """Likewise, of a model whose weights are in several files."""
    index = hf_files.read_json(path, INDEX, hf_files.LARGEST_JSON, digests)
    file_of = index.get("weight_map")
    if not isinstance(file_of, dict) or not all(
        isinstance(file, str) for file in file_of.values()
    ):
        raise ConfigError(
            f"{path / INDEX} has no weight_map from tensors to files: download it again"
        )
    by_file = defaultdict(list)
    for name, file in file_of.items():
        by_file[file].append(name)
    return {hf_files.find(path, file): listed for file, listed in by_file.items()}


def _open(file: epath.Path) -> tuple[Any, Headers]:
    """A file, mapped into memory, and shape and dtype of each of its tensors."""
    headers = {}
    try:
        opened: Any = safetensors.safe_open(os.fspath(file), framework="numpy")
        for name in opened.keys():  # noqa: SIM118, it is no dict
            part = opened.get_slice(name)
            headers[name] = (tuple(part.get_shape()), part.get_dtype())
    except Exception as error:  # the library raises its own type and bare OSError
        raise ConfigError(
            f"{file} is not safetensors ({error}): download it again"
        ) from error
    return opened, headers


def _compare(path: epath.Path, expected: Iterable[Tensor], headers: Headers) -> None:
    """Refuses at the first tensor that is missing, unknown, or of another shape or dtype.

    A config may claim any number of layers, so `expected` is not listed beforehand.
    """
    known = set()
    for tensor in expected:
        known.add(tensor.name)
        if tensor.name not in headers:
            raise ConfigError(
                f"{path} has no {tensor.name}, which its config.json asks for:"
                " download it again"
            )
        shape, dtype = headers[tensor.name]
        if shape != tensor.shape or dtype not in DTYPES:
            raise ConfigError(
                f"{path} has {tensor.name} as {dtype} {list(shape)}, not floats"
                f" {list(tensor.shape)} as config.json asks: download it again"
            )
    unknown = sorted(name for name in set(headers) - known if not _is_obsolete(name))
    if unknown:
        raise ConfigError(
            f"{path} has {unknown[0]} ({len(unknown)} such), for which the model has no"
            " place: choose another model"
        )


def _is_obsolete(name: str) -> bool:
    """Old checkpoints also hold the frequencies of rotary positions."""
    return name.endswith("rotary_emb.inv_freq")
