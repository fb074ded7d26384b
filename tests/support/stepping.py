"""The train step on a mesh, compiled once a process for all tests that look at it."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from sparsecod_jax import config
from sparsecod_jax.parallel.layout import resolve
from sparsecod_jax.train.step import Batch, build, loss_and_gradients
from tests.support import tiny_configs


class Stepped(NamedTuple):
    """What one step from the initial state did."""

    params: Any  # before it
    metrics: Any
    grads: Any
    local_shapes: Any  # of the parameters on the first device
    state_bytes: int  # on the first device
    temporary_bytes: int
    text: str  # the compiled program


def tokens(rows: int = 8, length: int = 32, vocab: int = 304) -> np.ndarray:
    return (
        np.random.default_rng(0).integers(0, vocab, (rows, length + 1)).astype(np.int32)
    )


def gradients(experiment: config.Experiment):
    """`loss_and_gradients` of an experiment on one device, from parameters and a batch."""
    here = dataclasses.replace(experiment, mesh=config.Mesh(1, 1, 1, 1))
    layout = resolve(here, jax.devices()[:1])
    return jax.jit(functools.partial(loss_and_gradients, experiment.model, layout))


@functools.cache
def on_mesh(model: config.Model, *sizes: int) -> Stepped:
    """One step of a tiny experiment; without clipping and with b1 = 0 Adam's first
    moment is the gradient.
    """
    experiment = tiny_configs.experiment(
        model=model, mesh=config.Mesh(*sizes), optimizer={"b1": 0.0, "clip_norm": 1e9}
    )
    program = build(experiment, jax.devices()[: np.prod(sizes)])
    batch = Batch(
        jax.device_put(
            tokens(vocab=model.vocab_size), program.abstract_batch.tokens.sharding
        )
    )
    state = program.init()
    parts = jax.tree.map(lambda leaf: leaf.addressable_shards[0].data, state)
    state_bytes = sum(part.nbytes for part in jax.tree.leaves(parts))
    shapes = jax.tree.map(lambda part: part.shape, parts.params)
    params = jax.device_get(state.params)
    compiled = program.lower(with_moments=False).compile()
    memory = compiled.memory_analysis()
    assert memory
    state, metrics = compiled(state, batch)
    metrics, grads = jax.device_get(
        (metrics, optax.tree_utils.tree_get(state.opt_state, "mu"))
    )
    return Stepped(
        params,
        metrics,
        grads,
        shapes,
        state_bytes,
        memory.temp_size_in_bytes,
        compiled.as_text() or "",
    )
