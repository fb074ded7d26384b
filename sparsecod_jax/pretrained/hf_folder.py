"""How is a folder of Hugging Face read, if anyone may have made it?

Only plain files that lie in the folder itself are opened, only safetensors are read, and all names, shapes and dtypes are compared with
the model that config.json describes before anything is allocated. Weights then go tensor by tensor into the layout that is asked for.
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
from sparsecod_jax.pretrained.hf_tensors import Tensor, tensors, to_ours
from sparsecod_jax.shell.shown import shown, warn_once
from sparsecod_jax.storage import files
from sparsecod_jax.storage.digest import names

CONFIG, WEIGHTS, INDEX = (
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
)
DTYPES = ("F64", "F32", "F16", "BF16")
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclasses.dataclass(frozen=True)
class Folder:
    """A folder whose config, tensor names, shapes and dtypes fit one another; no weight has been read."""

    path: epath.Path
    values: dict[str, Any]  # config.json
    model: Model
    max_seq_len: int  # tokens of a sequence
    places: dict[str, Any]  # the open file of each tensor
    digests: dict[str, str]  # of tensors, where an export left them
    digests_of_files: dict[str, str]
    verified: set[str] = dataclasses.field(
        default_factory=set
    )  # tensors whose digests were compared

    def tokenizer(self) -> Tokenizer:
        """Its tokenizer, which frames a text in its own way.

        Raises:
          ConfigError: there is none, or it has ids that the model has not.
        """
        hf_files.read(
            self.path, TOKENIZER, hf_files.LARGEST_JSON, self.digests_of_files
        )
        eos_id, start_id = (
            self._token(name) for name in ("eos_token_id", "bos_token_id")
        )
        found = load_tokenizer(self.path / TOKENIZER, eos_id, start_id, before=None)
        if found.vocab_size > self.model.vocab_size:
            raise ConfigError(
                f"{self.path / TOKENIZER} has {found.vocab_size} ids and the model {self.model.vocab_size}: put the model's own there"
            )
        return found

    def words(self) -> dict[str, bytes]:
        """What the folder says about itself, by file: card, licence, settings."""
        return hf_files.read_words(self.path, self.digests_of_files)

    def _token(self, name: str) -> int | None:
        """The id of a token, the first of several; None where config.json has none."""
        value = self.values.get(name)
        first = value[0] if isinstance(value, list) and value else value
        if first is not None and (
            type(first) is not int or not 0 <= first < self.model.vocab_size
        ):
            raise ConfigError(
                f"config.json of {self.path} has {name}={str(value)[:80]}: correct it to an id below {self.model.vocab_size}"
            )
        return first

    def parameters(self, abstract: Any) -> Any:
        """The weights as our parameters, with the shapes and shardings of `abstract`; at no time are they in memory twice.

        Raises:
          ConfigError: a tensor that our model has no place for is not zero.
        """
        parts: dict[str, list[Tensor]] = defaultdict(list)
        if not self.digests:
            warn_once(
                f"{shown(self.path.name)} has no digests of its tensors: damage to their bits would not be noticed"
            )
        for tensor in tensors(self.model, expert_width(self.values)):
            parts[tensor.path].append(tensor)
        for tensor in parts.pop("", []):
            if self._read(tensor).any():
                raise ConfigError(
                    f"{tensor.name} of {self.path} is not zero: of mixtures only those can be read that `sparsecod export` wrote"
                )
        leaves, tree = jax.tree.flatten(abstract)
        arrays = [
            jax.make_array_from_callback(
                leaf.shape, leaf.sharding, partial(self._fill, parts[name], leaf.shape)
            )
            for name, leaf in zip(names(abstract), leaves, strict=True)
        ]
        return jax.tree.unflatten(tree, arrays)

    def _fill(
        self, parts: list[Tensor], shape: tuple[int, ...], index: Any
    ) -> np.ndarray:
        """What one device holds of one of our parameters."""
        ranges = [
            range(*entry.indices(size))
            for entry, size in zip(index, shape, strict=True)
        ]
        filled = np.empty([len(places) for places in ranges], np.float32)
        for tensor in parts:
            stacked = len(tensor.index)
            if all(
                number in places
                for number, places in zip(tensor.index, ranges, strict=False)
            ):
                here = tuple(
                    number - places.start
                    for number, places in zip(tensor.index, ranges, strict=False)
                )
                filled[here] = to_ours(tensor, self._read(tensor), shape[stacked:])[
                    index[stacked:]
                ]
        return filled

    def _read(self, tensor: Tensor) -> np.ndarray:
        name = (
            tensor.name if tensor.name in self.places else EMBEDDING
        )  # where the two are tied
        stored = self.places[name].get_tensor(name)
        self._verify(name, stored)
        values = stored.astype(np.float32)
        if not np.isfinite(values).all():
            raise ConfigError(
                f"{name} of {self.path} has values that are not finite in float32: choose another checkpoint"
            )
        return values

    def _verify(self, name: str, stored: np.ndarray) -> None:
        """Compares a tensor with its digest, once."""
        if not self.digests or name in self.verified:
            return
        if self.digests.get(name) != digest(stored):
            raise ConfigError(
                f"{name} of {self.path} was changed after it was exported: copy the file that holds it again"
            )
        self.verified.add(name)


def digest(stored: np.ndarray) -> str:
    """Of the bytes of a tensor as they are stored."""
    return hashlib.sha256(np.ascontiguousarray(stored).view(np.uint8).data).hexdigest()


def open_folder(path: epath.Path) -> Folder:
    """Looks at config and headers.

    Raises:
      ConfigError: the architecture is not one of ours, or a file is missing, elsewhere, no safetensors, or does not fit the config.
    """
    if files.is_remote(path) or not path.is_dir():
        raise ConfigError(
            f"{path} is not a folder on this machine: give --hf a local copy of the model"
        )
    digests, digests_of_files = hf_files.read_digests(path)
    values = hf_files.read_json(path, CONFIG, hf_files.LARGEST_WORDS, digests_of_files)
    model, max_seq_len = from_config(values)
    tied = values.get("tie_word_embeddings", False)
    if type(tied) is not bool:
        raise ConfigError(
            f"config.json of {path} has tie_word_embeddings={tied!r}: correct it to true or false"
        )
    places, headers = {}, {}
    for file, listed in _files(path, digests_of_files).items():
        opened, inside = _open(file)
        absent = [name for name in listed or [] if name not in inside]
        twice = [name for name in inside if name in headers]
        if absent or twice:
            wrong = (
                f"lacks {absent[0]}, which the index places there"
                if absent
                else f"has {twice[0]}, as another file does"
            )
            raise ConfigError(f"{file} {wrong}: download it again")
        places |= dict.fromkeys(inside, opened)
        headers |= inside
    shared_head = (
        tied and HEAD not in headers
    )  # where both are there transformers takes the head
    _compare(
        path,
        (
            tensor
            for tensor in tensors(model, expert_width(values))
            if not (shared_head and tensor.name == HEAD)
        ),
        headers,
    )
    return Folder(path, values, model, max_seq_len, places, digests, digests_of_files)


def _files(
    path: epath.Path, digests: dict[str, str]
) -> dict[epath.Path, list[str] | None]:
    """The files of weights, with the names that an index places in each."""
    if (path / INDEX).exists() and (path / WEIGHTS).exists():
        raise ConfigError(
            f"{path} has both {WEIGHTS} and {INDEX}: delete the one that is not meant"
        )
    if (path / INDEX).exists():
        places = hf_files.read_json(path, INDEX, hf_files.LARGEST_JSON, digests).get(
            "weight_map"
        )
        if not isinstance(places, dict) or not all(
            isinstance(file, str) for file in places.values()
        ):
            raise ConfigError(
                f"{path / INDEX} has no weight_map from tensors to files: download it again"
            )
        by_file = defaultdict(list)
        for name, file in places.items():
            by_file[file].append(name)
        return {hf_files.find(path, file): listed for file, listed in by_file.items()}
    pickles = sorted(
        file.name
        for pattern in ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
        for file in path.glob(pattern)
    )
    if pickles and not (path / WEIGHTS).exists():
        raise ConfigError(
            f"{path} has its weights in {pickles[0]}, which may run code when it is read: convert it to safetensors first"
        )
    return {hf_files.find(path, WEIGHTS): None}


def _open(file: epath.Path) -> tuple[Any, dict[str, tuple[tuple[int, ...], str]]]:
    """A file, mapped, and shape and dtype of each of its tensors."""
    try:
        opened: Any = safetensors.safe_open(os.fspath(file), framework="numpy")
        slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118, it is no dict
    except Exception as error:  # the library raises its own type and bare OSError
        raise ConfigError(
            f"{file} is not safetensors ({error}): download it again"
        ) from error
    return opened, {
        name: (tuple(part.get_shape()), part.get_dtype())
        for name, part in slices.items()
    }


def _compare(
    path: epath.Path,
    expected: Iterable[Tensor],
    found: dict[str, tuple[tuple[int, ...], str]],
) -> None:
    """Refuses at the first tensor that is missing, too many, or of another shape or kind; a config may claim any number of layers."""
    known = set()
    for tensor in expected:
        known.add(tensor.name)
        shape, dtype = found.get(tensor.name, (None, None))
        if shape is None:
            raise ConfigError(
                f"{path} has no {tensor.name}, which its config.json asks for: download it again"
            )
        if shape != tensor.shape or dtype not in DTYPES:
            raise ConfigError(
                f"{path} has {tensor.name} as {dtype} {list(shape)}, not floats {list(tensor.shape)} as config.json asks: download it again"
            )
    unknown = sorted(
        name for name in set(found) - known if not name.endswith("rotary_emb.inv_freq")
    )  # old checkpoints have these
    if unknown:
        raise ConfigError(
            f"{path} has {unknown[0]} ({len(unknown)} such), for which the model has no place: choose another model"
        )
