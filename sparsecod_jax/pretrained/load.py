"""Which trained model is meant, a run's or one in a folder of Hugging Face, and how is it laid out over these devices?"""

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
    """A trained model that was found, and not loaded yet."""

    path: epath.Path
    model: config.Model  # as it was trained
    max_seq_len: int  # tokens of a sequence that it was trained on
    experiment: config.Experiment | None  # that trained it, where it is known
    restore: Callable[
        [Any], tuple[int, Any]
    ]  # the step and the parameters, laid out like an abstract tree of them
    tokenizer: Callable[[], Tokenizer]  # raises ConfigError where there is none


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A trained model with at least float32 arithmetic, its parameters laid out over all devices."""

    source: ModelSource
    net: Transformer
    params: Any
    mesh: Mesh
    step: int  # of the checkpoint; 0 in a folder of Hugging Face
    weights: str  # a digest of the parameters


def find_model(workdir: str | None = None, hf: str | None = None) -> ModelSource:
    """The model of a run directory, or of a folder of Hugging Face; just one is given.

    Raises:
      ConfigError: there is no such model, or it is none of ours.
    """
    if (workdir is None) == (hf is None):
        raise ConfigError("one model is looked at: give either --workdir or --hf")
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
    restore = partial(_restore, run, experiment)
    return ModelSource(
        run.path,
        experiment.model,
        experiment.data.seq_len,
        None if imported else experiment,
        restore,
        lambda: _tokenizer(run),
    )


def model_of_folder(folder: Folder) -> ModelSource:
    """The model of an open folder of Hugging Face."""
    return ModelSource(
        folder.path,
        folder.model,
        folder.max_seq_len,
        None,
        lambda abstract: (0, folder.parameters(abstract)),
        folder.tokenizer,
    )


def load_model(source: ModelSource) -> LoadedModel:
    """The model on all devices; nothing of its run or folder is changed.

    Raises:
      ConfigError: it does not fit the devices, or its weights can't be used.
    """
    net = at_least_float32(source.model)
    layout.check_platform(net.cfg)
    devices = jax.devices()
    one_row_each = layout.choose_mesh(net.cfg, len(devices), config.Mesh(), devices)
    mesh = make_mesh(one_row_each, devices)
    boxed = jax.eval_shape(
        partial(net.init, jax.random.key(0)), jax.ShapeDtypeStruct((1, 8), jnp.int32)
    )["params"]
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding
        ),
        nn.unbox(boxed),
        tree_shardings(mesh, boxed),
    )
    step, params = source.restore(abstract)
    by_name = digests({"state": {"params": params}})
    weights = hashlib.sha256(json.dumps(by_name, sort_keys=True).encode()).hexdigest()[
        :16
    ]
    return LoadedModel(source, net, params, mesh, step, weights)


def at_least_float32(model: config.Model) -> Transformer:
    """How a finished model is computed: in at least float32, since scores are small differences."""
    dtype = (
        "float64"
        if "float64" in (model.compute_dtype, model.residual_dtype)
        else "float32"
    )
    kernel = "reference" if dtype == "float64" else "xla"
    wide = dataclasses.replace(model, compute_dtype=dtype, residual_dtype=dtype)
    return Transformer(wide, config.Kernels(attention=kernel, remat="none"))


def _restore(
    run: RunDir, experiment: config.Experiment, abstract: Any
) -> tuple[int, Any]:
    """The newest checkpoint that verifies, of the model that config.json tells of."""
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
    """Compares config.json, which may have been changed, with the config sealed in the checkpoint."""
    if "config" not in restored.record:
        warn_once(
            f"{shown(run.path)}: checkpoint {restored.step} does not record its config, config.json is taken as it is"
        )
        return
    says = identity_fields(experiment, "")
    sealed = identity_fields(config.from_dict(restored.record["config"]), "")
    differing = sorted(
        name for name in {*says, *sealed} if says.get(name) != sealed.get(name)
    )
    if differing:
        values = ", ".join(
            f"{name}={says.get(name)!r} instead of {sealed.get(name)!r}"
            for name in differing
        )
        other = f"than checkpoint {restored.step} was made with"
        raise ConfigError(
            f"{run.config} holds another model {other} ({values}): restore it from a copy"
        )


def _tokenizer(run: RunDir) -> Tokenizer:
    if not run.tokenizer.exists():
        raise ConfigError(
            f"{run.path} has no tokenizer.json: copy the one of its data there"
        )
    _check_tokenizer(run)
    manifest = read_record(run.manifest)
    recorded = manifest.get("tokenizer", {})
    unrecorded = (
        None if "imported" in manifest else ()
    )  # an import had the framing of its folder, a run nothing before a text
    before = tuple(recorded["before"]) if "before" in recorded else unrecorded
    if "before" not in recorded:
        framing = (
            "its tokenizer's own"
            if before is None
            else "nothing before a text, the end of a document after it"
        )
        warn_once(
            f"{shown(run.path)} was made before the framing of texts was recorded: it is taken to be {framing}"
        )
    return load_tokenizer(
        run.tokenizer, recorded.get("eos_id"), recorded.get("start_id"), before
    )


def _check_tokenizer(run: RunDir) -> None:
    """Another tokenizer would give other ids. Earlier versions recorded no digest of it."""
    files.check_plain(run.tokenizer)
    recorded = read_record(run.manifest).get("tokenizer_digest")
    if recorded is not None and recorded != files.digest(run.tokenizer):
        raise ConfigError(
            f"{run.tokenizer} is not the tokenizer that this run was trained with: copy the one of its data there"
        )
