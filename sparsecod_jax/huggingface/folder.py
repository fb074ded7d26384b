"""How is a folder of Hugging Face read, if anyone may have made it?

Only plain files that lie in the folder itself are opened, only safetensors are read, and all names, shapes and dtypes are compared with
the model that config.json describes before anything is allocated. Weights then go tensor by tensor into the layout that is asked for.
"""

import dataclasses
import json
import os
from collections import defaultdict
from collections.abc import Iterable
from functools import partial
from typing import Any

import jax
import numpy as np
import safetensors
from etils import epath

from sparsecod_jax import files
from sparsecod_jax.config import Model
from sparsecod_jax.data.tokenizer import TOKENIZER, Tokenizer
from sparsecod_jax.data.tokenizer import load as load_tokenizer
from sparsecod_jax.digest import names
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.huggingface.architectures import from_config
from sparsecod_jax.huggingface.tensors import Tensor, tensors, to_ours

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
DTYPES = ("F64", "F32", "F16", "BF16")
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclasses.dataclass(frozen=True)
class Folder:
    """A folder whose config, tensor names, shapes and dtypes fit one another; no weight has been read."""

    path: epath.Path
    values: dict[str, Any]  # config.json
    model: Model
    longest: int  # tokens of a sequence
    places: dict[str, Any]  # the open file of each tensor

    def tokenizer(self) -> Tokenizer:
        """Its tokenizer; raises ConfigError when there is none."""
        file = _plain_file(self.path, TOKENIZER)
        return load_tokenizer(file, *(_first(self.values.get(f"{name}_token_id")) for name in ("eos", "bos")))

    def parameters(self, abstract: Any) -> Any:
        """The weights as our parameters, with the shapes and shardings of `abstract`; at no time are they in memory twice.

        Raises:
          ConfigError: a tensor that our model has no place for is not zero.
        """
        parts: dict[str, list[Tensor]] = defaultdict(list)
        for tensor in tensors(self.model):
            parts[tensor.path].append(tensor)
        for tensor in parts.pop("", []):
            if self._read(tensor).any():
                raise ConfigError(
                    f"{tensor.name} of {self.path} is not zero: of mixtures only those can be read that `sparsecod export` wrote"
                )
        leaves, tree = jax.tree.flatten(abstract)
        arrays = [
            jax.make_array_from_callback(leaf.shape, leaf.sharding, partial(self._fill, parts[name], leaf.shape))
            for name, leaf in zip(names(abstract), leaves, strict=True)
        ]
        return jax.tree.unflatten(tree, arrays)

    def _fill(self, parts: list[Tensor], shape: tuple[int, ...], index: Any) -> np.ndarray:
        """What one device holds of one of our parameters."""
        ranges = [range(*entry.indices(size)) for entry, size in zip(index, shape, strict=True)]
        filled = np.empty([len(places) for places in ranges], np.float32)
        for tensor in parts:
            stacked = len(tensor.index)
            if all(number in places for number, places in zip(tensor.index, ranges, strict=False)):
                here = tuple(number - places.start for number, places in zip(tensor.index, ranges, strict=False))
                filled[here] = to_ours(tensor, self._read(tensor), shape[stacked:])[index[stacked:]]
        return filled

    def _read(self, tensor: Tensor) -> np.ndarray:
        name = tensor.name if tensor.name in self.places else EMBEDDING  # where the two are tied
        return self.places[name].get_tensor(name).astype(np.float32)


def open_folder(path: epath.Path) -> Folder:
    """Looks at config and headers.

    Raises:
      ConfigError: the architecture is not one of ours, or a file is missing, elsewhere, no safetensors, or does not fit the config.
    """
    if files.is_remote(path) or not path.is_dir():
        raise ConfigError(f"{path} is not a folder on this machine: give --hf a local copy of the model")
    values = _read_json(_plain_file(path, CONFIG))
    model, longest = from_config(values)
    tied = bool(values.get("tie_word_embeddings"))
    places, headers = {}, {}
    for file, listed in _files(path).items():
        opened, inside = _open(file)
        absent = [name for name in listed or [] if name not in inside]
        if absent:
            raise ConfigError(f"{file} lacks {absent[0]}, which the index places there: download it again")
        names_here = [name for name in listed or inside if not (tied and name == HEAD)]
        places |= dict.fromkeys(names_here, opened)
        headers |= {name: inside[name] for name in names_here}
    _compare(path, (tensor for tensor in tensors(model) if not (tied and tensor.name == HEAD)), headers)
    return Folder(path, values, model, longest, places)


def _files(path: epath.Path) -> dict[epath.Path, list[str] | None]:
    """The files of weights, with the names that an index places in each."""
    if (path / INDEX).exists():
        places = _read_json(_plain_file(path, INDEX)).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
            raise ConfigError(f"{path / INDEX} has no weight_map from tensors to files: download it again")
        by_file = defaultdict(list)
        for name, file in places.items():
            by_file[file].append(name)
        return {_plain_file(path, file): listed for file, listed in by_file.items()}
    pickles = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt") for file in path.glob(pattern))
    if pickles and not (path / WEIGHTS).exists():
        raise ConfigError(f"{path} has its weights in {pickles[0]}, which may run code when it is read: convert it to safetensors first")
    return {_plain_file(path, WEIGHTS): None}


def _plain_file(path: epath.Path, name: str) -> epath.Path:
    """A file in the folder itself, not a way out of it."""
    file = path / name
    if epath.Path(name).name != name or name in ("", ".", ".."):
        raise ConfigError(f"{path} names the file {name!r}, which is not in the folder itself: get the model from a source that you trust")
    if not file.exists():
        raise ConfigError(f"there is no {file}: give --hf a folder with config.json and {WEIGHTS} (or its index and shards)")
    if os.path.islink(file) or not file.is_file():
        raise ConfigError(f"{file} is a link to another place: copy the folder with its links resolved, as `cp -rL` does")
    return file


def _read_json(file: epath.Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{file} is not JSON ({error}): download it again") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{file} does not hold an object: download it again")
    return values


def _open(file: epath.Path) -> tuple[Any, dict[str, tuple[tuple[int, ...], str]]]:
    """A file, mapped, and shape and dtype of each of its tensors."""
    try:
        opened: Any = safetensors.safe_open(os.fspath(file), framework="numpy")
        slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118, it is no dict
    except Exception as error:  # the library raises its own type and bare OSError
        raise ConfigError(f"{file} is not safetensors ({error}): download it again") from error
    return opened, {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}


def _compare(path: epath.Path, expected: Iterable[Tensor], found: dict[str, tuple[tuple[int, ...], str]]) -> None:
    """Refuses at the first tensor that is missing, too many, or of another shape or kind; a config may claim any number of layers."""
    known = set()
    for tensor in expected:
        known.add(tensor.name)
        shape, dtype = found.get(tensor.name, (None, None))
        if shape is None:
            raise ConfigError(f"{path} has no {tensor.name}, which its config.json asks for: download it again")
        if shape != tensor.shape or dtype not in DTYPES:
            raise ConfigError(
                f"{path} has {tensor.name} as {dtype} {list(shape)}, not floats {list(tensor.shape)} as config.json asks: download it again"
            )
    unknown = sorted(name for name in set(found) - known if not name.endswith("rotary_emb.inv_freq"))  # old checkpoints have these
    if unknown:
        raise ConfigError(f"{path} has {unknown[0]} ({len(unknown)} such), for which the model has no place: choose another model")


def _first(ids: Any) -> int | None:
    return ids[0] if isinstance(ids, list) and ids else ids if isinstance(ids, int) else None
