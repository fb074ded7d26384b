"""Which trained model is meant, a run's or one in a Hugging Face model folder?

Models for scores, tasks, text and export: how they are laid out over these devices.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from flax import linen as nn
from jax.sharding import Mesh

from sparsecod_jax import config
from sparsecod_jax.config.identity import identity_fields
from sparsecod_jax.data.tokenizer import Tokenizer
from sparsecod_jax.data.tokenizer import load as load_tokenizer
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.model.transformer import Transformer
from sparsecod_jax.parallel import layout
from sparsecod_jax.parallel.sharding import make_mesh, tree_shardings
from sparsecod_jax.pretrained.hf_folder import Folder, open_folder
from sparsecod_jax.shell.shown import shown, warn_once
from sparsecod_jax.storage import files, records
from sparsecod_jax.storage.checkpoint import Checkpointer, Restored
from sparsecod_jax.storage.digest import digests
from sparsecod_jax.storage.records import read_record
from sparsecod_jax.storage.rundir import RunDir


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """Where a trained model is, and what is known of it before its weights are loaded.

    Attributes:
      model: as it was trained.
      max_seq_len: tokens of a sequence that it was trained on.
      experiment: that trained it, where it is known.
      restore: from an abstract tree of the parameters to the step of the checkpoint and
        the parameters, laid out like that tree.
      tokenizer: raises ConfigError where there is none.
    """

    path: epath.Path
    model: config.Model
    max_seq_len: int
    experiment: config.Experiment | None
    restore: Callable[[Any], tuple[int, Any]]
    tokenizer: Callable[[], Tokenizer]


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A trained model in at least float32, its parameters laid out over all devices.

    Attributes:
      step: of the checkpoint; 0 in a Hugging Face model folder.
      weights: a digest of the parameters.
    """

    source: ModelSource
    net: Transformer
    params: Any
    mesh: Mesh
    step: int
    weights: str


def find_model(workdir: str | None = None, hf: str | None = None) -> ModelSource:
    """The model of a run directory, or of a Hugging Face model folder.

    Args:
      workdir: a run directory, whose config is read and whose checkpoint is not yet.
      hf: a Hugging Face model folder, whose headers are read; just one of both is given.

    Raises:
      ConfigError: there is no such model, or it is none of ours.
    """
    if (workdir is None) == (hf is None):
        raise ConfigError("there is one model at a time: give either --workdir or --hf")
    if hf is not None:
        return model_of_folder(open_folder(files.absolute(hf)))
    run = RunDir(files.absolute(str(workdir)))
    if not run.config.exists():
        raise ConfigError(
            f"{run.path} holds no run: give a --workdir that `sparsecod train` wrote"
        )
    experiment = config.from_dict(read_record(run.config))
    records.warn_if_unchecked(run.config)
    imported = run.manifest.exists() and "imported" in read_record(run.manifest)
    return ModelSource(
        path=run.path,
        model=experiment.model,
        max_seq_len=experiment.data.seq_len,
        experiment=None if imported else experiment,
        restore=partial(_restore, run, experiment),
        tokenizer=partial(_tokenizer, run),
    )


def model_of_folder(folder: Folder) -> ModelSource:
    """The model of an open Hugging Face model folder."""
    return ModelSource(
        path=folder.path,
        model=folder.model,
        max_seq_len=folder.max_seq_len,
        experiment=None,
        restore=lambda abstract: (0, folder.parameters(abstract)),
        tokenizer=folder.tokenizer,
    )


def load_model(source: ModelSource) -> LoadedModel:
    """The model on all devices; nothing of its run or folder is changed.

    Raises:
      ConfigError: it does not fit the devices, or its weights can't be used.
    """
    net = at_least_float32(source.model)
    layout.check_platform(net.cfg)
    devices = jax.devices()
    sizes = layout.choose_mesh(net.cfg, len(devices), config.Mesh(), devices)
    mesh = make_mesh(sizes, devices)
    step, params = source.restore(_abstract_parameters(net, mesh))
    return LoadedModel(source, net, params, mesh, step, _weights_digest(params))


def _abstract_parameters(net: Transformer, mesh: Mesh) -> Any:
    """Shapes, dtypes and shardings of the parameters, nothing of which is in memory."""
    init = partial(net.init, jax.random.key(0))
    boxed = jax.eval_shape(init, jax.ShapeDtypeStruct((1, 8), jnp.int32))["params"]

    def sharded(leaf, sharding):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(sharded, nn.unbox(boxed), tree_shardings(mesh, boxed))


def _weights_digest(params: Any) -> str:
    """The same for the same bits, however they are laid out over devices."""
    by_name = digests({"state": {"params": params}})
    content = json.dumps(by_name, sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def at_least_float32(model: config.Model) -> Transformer:
    """The network of a trained model, in at least float32: scores are small differences."""
    if "float64" in (model.compute_dtype, model.residual_dtype):
        dtype, kernel = "float64", "reference"
    else:
        dtype, kernel = "float32", "xla"
    wide = dataclasses.replace(model, compute_dtype=dtype, residual_dtype=dtype)
    return Transformer(wide, config.Kernels(attention=kernel, remat="none"))


def _restore(
    run: RunDir, experiment: config.Experiment, abstract: Any
) -> tuple[int, Any]:
    """The newest checkpoint that verifies, of the model that config.json describes."""
    with contextlib.closing(
        Checkpointer(run, experiment.checkpoint.keep, read_only=True)
    ) as checkpointer:
        restored = checkpointer.restore_latest({"state": {"params": abstract}})
    if restored is None:
        raise ConfigError(
            f"{run.path} has no checkpoint: train it first, with `sparsecod train`"
        )
    _check_config(run, experiment, restored)
    return restored.step, restored.items["state"]["params"]


def _check_config(
    run: RunDir, experiment: config.Experiment, restored: Restored
) -> None:
    """Compares config.json, which may have been changed, with that of the checkpoint."""
    if "config" not in restored.record:
        warn_once(
            f"{shown(run.path)}: checkpoint {restored.step} does not record its config,"
            " config.json is taken as it is"
        )
        return
    current = identity_fields(experiment, "")
    sealed = identity_fields(config.from_dict(restored.record["config"]), "")
    differences = [
        f"{name}={current.get(name)!r} instead of {sealed.get(name)!r}"
        for name in sorted({*current, *sealed})
        if current.get(name) != sealed.get(name)
    ]
    if differences:
        raise ConfigError(
            f"{run.config} holds another model than checkpoint {restored.step} was made"
            f" with ({', '.join(differences)}): restore it from a copy"
        )


def _tokenizer(run: RunDir) -> Tokenizer:
    """The tokenizer of a run, with the framing of texts that its manifest records."""
    if not run.tokenizer.exists():
        raise ConfigError(
            f"{run.path} has no tokenizer.json: copy the one of its data there"
        )
    _check_tokenizer(run)
    manifest = read_record(run.manifest)
    recorded = manifest.get("tokenizer", {})
    if "before" in recorded:
        before = tuple(recorded["before"])
    else:
        before = _unrecorded_framing(run, imported="imported" in manifest)
    return load_tokenizer(
        run.tokenizer, recorded.get("eos_id"), recorded.get("start_id"), before
    )


def _unrecorded_framing(run: RunDir, *, imported: bool) -> tuple[int, ...] | None:
    """The ids before a text, of earlier versions; None is the tokenizer's own framing."""
    if imported:
        before, framing = None, "its tokenizer's own"
    else:
        before = ()
        framing = "nothing before a text, the end of a document after it"
    warn_once(
        f"{shown(run.path)} was made before the framing of texts was recorded:"
        f" it is taken to be {framing}"
    )
    return before


def _check_tokenizer(run: RunDir) -> None:
    """Another tokenizer would give other ids. Earlier versions recorded no digest of it."""
    files.check_plain(run.tokenizer)
    recorded = read_record(run.manifest).get("tokenizer_digest")
    if recorded is not None and recorded != files.digest(run.tokenizer):
        raise ConfigError(
            f"{run.tokenizer} is not the tokenizer that this run was trained with:"
            " copy the one of its data there"
        )
