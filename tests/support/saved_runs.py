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
    """A run at `path` with a tokenizer of bytes and a checkpoint of step 3; there is no data."""
    made = RunDir(epath.Path(path))
    made.path.mkdir(parents=True)
    tokenizer = of_bytes()
    tokenizer.save(made.path)
    described = config.to_dict(tiny_configs.experiment(model=model))
    write_record(made.config, described)
    write_json(
        made.manifest,
        {
            "tokenizer": {"eos_id": tokenizer.eos_id, "start_id": tokenizer.eos_id},
            "commit": "none",
        },
    )
    made.set_status("finished")
    with contextlib.closing(Checkpointer(made, keep=1)) as checkpointer:
        checkpointer.save(
            3,
            {
                "state": {
                    "params": tiny_configs.init(model, seed)
                    if params is None
                    else params
                }
            },
            {"config": described},
        )
        checkpointer.wait()
    return made


def logits(model: LoadedModel, tokens_BT) -> np.ndarray:
    """What a finished model says, [B, T, V]."""
    with jax.set_mesh(model.mesh), jax.default_matmul_precision("highest"):
        apply = jax.jit(
            lambda params, tokens: model.net.apply({"params": params}, tokens)[0]
        )
        return np.asarray(apply(model.params, jnp.asarray(tokens_BT)))
