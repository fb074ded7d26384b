"""Which model is looked at, and on which sequences?

N sequences, T positions, B rows on the devices at once.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import linen as nn
from jax.sharding import Mesh
from tqdm import tqdm

from sparsecod_jax import config, files, placement
from sparsecod_jax.analysis import network
from sparsecod_jax.checkpoint import Checkpointer
from sparsecod_jax.data.pipeline import local_rows, segments, to_devices
from sparsecod_jax.data.store import Manifest, Windows, prepare_command, read_manifest
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.files import read_json
from sparsecod_jax.model import Transformer
from sparsecod_jax.rundir import RunDir
from sparsecod_jax.sharding import batch_sharding, make_mesh, tree_shardings, ways

STATES_BYTES = 2**28  # of a device, for the stream after every block of the rows that it holds


class Rows(NamedTuple):
    """Sequences on the devices; what is computed for the rows after the first `valid` is thrown away."""

    tokens: Any  # [B, T]
    segments: Any  # [B, T], None without document masking
    valid: int


@dataclasses.dataclass(frozen=True)
class Subject:
    """A finished model with float32 arithmetic (float64 if it was trained so), and the sequences that it is looked at with."""

    net: Transformer
    params: Any
    mesh: Mesh
    tokens_NT: np.ndarray  # int32
    eos_id: int | None  # ends a document, where attention stays within documents
    step: int  # of the checkpoint
    weights: str  # a digest of the parameters

    @property
    def cfg(self) -> config.Model:
        return self.net.cfg

    def documents(self, tokens_NT: np.ndarray) -> np.ndarray | None:
        """A number for each document of a sequence, [N, T]; None where attention does not stay within documents."""
        return None if self.eos_id is None else segments(tokens_NT, self.eos_id)

    def blocks(self, doing: str) -> Iterable[int]:
        """The numbers of the blocks, with a progress bar for whoever watches."""
        return tqdm(range(self.cfg.n_layers), desc=doing, unit="block", leave=False, disable=None)

    def rows(self, tokens_NT: np.ndarray) -> Iterator[Rows]:
        """The sequences in order, as many at a time as STATES_BYTES allows; all batches have one shape."""
        cfg, (count, length) = self.cfg, tokens_NT.shape
        sharding, devices = batch_sharding(self.mesh), ways("batch")
        row_bytes = (cfg.n_layers + 1) * length * cfg.d_model * np.dtype(cfg.residual_dtype).itemsize
        batch = devices * min(max(STATES_BYTES // row_bytes, 1), math.ceil(count / devices))
        here = local_rows(sharding, batch)
        for first in range(0, count, batch):
            part = tokens_NT[(first + here) % count]
            tokens, masks = to_devices((part, self.documents(part)), here, sharding, batch)
            yield Rows(tokens, masks, min(batch, count - first))


def load(run: RunDir, tokens_NT: np.ndarray) -> Subject:
    """The newest checkpoint of a run that verifies, laid out over all devices; nothing of the run is changed.

    Raises:
      ConfigError: there is none, or the model does not take these tokens.
    """
    experiment = analysed(config.from_dict(read_json(run.config)))
    model = experiment.model
    placement.check_platform(model)
    if tokens_NT.min() < 0 or tokens_NT.max() >= model.vocab_size:
        raise ConfigError(f"the tokens reach from {tokens_NT.min()} to {tokens_NT.max()}: use ids from 0 to {model.vocab_size - 1}")
    mesh = make_mesh(placement.choose_mesh(experiment, jax.devices()))
    net = Transformer(model, placement.place(experiment, mesh).execution)
    boxed = jax.eval_shape(partial(net.init, jax.random.key(0)), jax.ShapeDtypeStruct((1, 8), jnp.int32))["params"]
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), nn.unbox(boxed), tree_shardings(mesh, boxed)
    )
    with contextlib.closing(Checkpointer(run, experiment.checkpoint.keep, read_only=True)) as checkpointer:
        restored = checkpointer.restore_latest({"state": {"params": abstract}})
    if restored is None:
        raise ConfigError(f"{run.path} has no checkpoint: train it first, with `sparsecod train`")
    eos_id = data_of(run)[1].eos_id if model.document_masking else None
    digests = {name: value for name, value in restored.record["digests"].items() if name.startswith("state/params/")}
    weights = hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()[:16]
    return Subject(net, restored.items["state"]["params"], mesh, tokens_NT.astype(np.int32), eos_id, restored.step, weights)


def per_sequence(subject: Subject, tokens_NT: np.ndarray, measure: Callable[[Rows, jax.Array], Any]) -> np.ndarray:
    """What `measure` gives for rows and their states, [..., B], for all sequences: [..., N] float64."""
    parts = []
    for rows in subject.rows(tokens_NT):
        states_LBTD = network.states(subject.net, subject.params, rows.tokens, rows.segments)
        parts.append(np.asarray(measure(rows, states_LBTD), np.float64)[..., : rows.valid])
    return np.concatenate(parts, axis=-1)


def analysed(experiment: config.Experiment) -> config.Experiment:
    """The experiment as it is analysed: at least float32, since scores are small differences, one row a device, the mesh chosen anew."""
    dtype = "float64" if "float64" in (experiment.model.compute_dtype, experiment.model.residual_dtype) else "float32"
    model = dataclasses.replace(experiment.model, compute_dtype=dtype, residual_dtype=dtype)
    kernel = "reference" if dtype == "float64" else "xla"
    execution = config.Execution(accumulation=1, remat="none", attention=kernel)
    return dataclasses.replace(experiment, model=model, mesh=config.Mesh(), execution=execution, global_batch=len(jax.devices()))


def data_of(run: RunDir) -> tuple[epath.Path, Manifest]:
    """The data that a run was trained on; raises ConfigError, naming the command that makes it, when it is absent."""
    experiment = config.from_dict(read_json(run.config))
    directory = files.absolute(experiment.data.path)
    return directory, read_manifest(directory, prepare_command(experiment))


def draw(run: RunDir, split: str, sequences: int, seq_len: int, seed: int) -> np.ndarray:
    """`sequences` windows of `seq_len` tokens, [N, T] int32, drawn without replacement from a split of the run's data.

    Raises:
      ConfigError: the data is not there, or the split has too few such windows.
    """
    directory, manifest = data_of(run)
    windows = Windows(directory, manifest, dict(manifest.splits())[split], seq_len - 1)
    if len(windows) < sequences:
        raise ConfigError(
            f"the {split} split has {len(windows)} windows of {seq_len} tokens, not {sequences}: lower --sequences or --seq_len"
        )
    chosen = np.random.default_rng(seed).choice(len(windows), sequences, replace=False)
    return np.stack([windows[number] for number in chosen])
