"""Runs with a checkpoint, made without training."""

import contextlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from sparsecod_jax import config
from sparsecod_jax.data.tokenizer import of_bytes
from sparsecod_jax.pretrained.load import LoadedModel
from sparsecod_jax.storage.checkpoint import Checkpointer
from sparsecod_jax.storage.records import write_json, write_record
from sparsecod_jax.storage.rundir import RunDir
from tests.support import tiny_configs


def run(path: Path, model: config.Model, params=None, *, seed: int = 0) -> RunDir:
    """A run with a tokenizer of bytes and a checkpoint of step 3; there is no data."""
    saved = RunDir(epath.Path(path))
    saved.path.mkdir(parents=True)
    tokenizer = of_bytes()
    tokenizer.save(saved.path)
    values = config.to_dict(tiny_configs.experiment(model=model))
    write_record(saved.config, values)
    framing = {"eos_id": tokenizer.eos_id, "start_id": tokenizer.eos_id}
    write_json(saved.manifest, {"tokenizer": framing, "commit": "none"})
    saved.set_status("finished")
    if params is None:
        params = tiny_configs.init(model, seed)
    with contextlib.closing(Checkpointer(saved, keep=1)) as checkpointer:
        items = {"state": {"params": params}}
        checkpointer.save(3, items, {"config": values})
        checkpointer.wait()
    return saved


def logits(model: LoadedModel, tokens_BT) -> np.ndarray:
    """The logits of a finished model, [B, T, V]."""

    @jax.jit
    def apply(params, tokens_BT):
        logits_BTV, _ = model.net.apply({"params": params}, tokens_BT)
        return logits_BTV

    with jax.set_mesh(model.mesh), jax.default_matmul_precision("highest"):
        return np.asarray(apply(model.params, jnp.asarray(tokens_BT)))
