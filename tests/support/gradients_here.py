"""Loss, gradients and statistics of one step in a process of its own, saved as .npz.

Usage: gradients_here.py MODEL_JSON TOKENS.npy MICROBATCHES OUT.npz
"""

import json
import sys
from functools import partial

import jax
import numpy as np

from sparsecod_jax import config
from sparsecod_jax.train.step import Batch, build, loss_and_gradients
from sparsecod_jax.tree import names
from tests.support import loaded_models, tiny_configs


def main(model_json: str, tokens_file: str, microbatches: str, out: str) -> None:
    model = config.from_dict(json.loads(model_json), config.Model)
    tokens = np.load(tokens_file)
    rows, length = tokens.shape[0], tokens.shape[1] - 1
    experiment = tiny_configs.experiment(
        model=model,
        global_batch=rows,
        data={"seq_len": length},
        execution={
            "accumulation": int(microbatches),
            "remat": "full",
            "attention": "auto",
        },
    )
    program = build(experiment, jax.devices())
    compute = jax.jit(
        partial(loss_and_gradients, model, program.layout, with_moments=True)
    )
    shardings = jax.tree.map(lambda leaf: leaf.sharding, program.abstract_state.params)
    with jax.set_mesh(program.mesh), jax.default_matmul_precision("highest"):
        params = jax.tree.map(jax.device_put, loaded_models.sharpened(model), shardings)
        batch = Batch(jax.device_put(tokens, program.abstract_batch.tokens.sharding))
        loss, grads, stats = jax.device_get(compute(params, batch))
    by_name = dict(zip(names(grads), jax.tree.leaves(grads), strict=True))
    np.savez(
        out, loss=loss, **{f"gradient/{n}": g for n, g in by_name.items()}, **stats
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
