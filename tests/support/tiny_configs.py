"""Experiments small enough for a test."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from sparsecod_jax import config
from sparsecod_jax.model.transformer import Transformer

MODEL = config.Model(
    d_model=32,
    n_layers=3,
    n_heads=4,
    n_kv_heads=2,
    d_ff=48,
    vocab_size=304,
    compute_dtype="float32",
    norm_eps=1e-5,
)
MIXTURE = dataclasses.replace(
    MODEL, d_ff=16, n_experts=8, top_k=2, shared_expert=True, d_shared=24
)


def experiment(**sections: Any) -> config.Experiment:
    """A tiny experiment; a section given as a dict replaces fields of the tiny one's."""
    base = config.Experiment(
        steps=6,
        global_batch=8,
        model=MODEL,
        data=config.Data(seq_len=32),
        optimizer=config.Optimizer(peak_lr=3e-3),
        schedule=config.Schedule(warmup_steps=2),
        mesh=config.Mesh(),
        execution=config.Execution(accumulation=1, attention="xla"),
        evaluation=config.Evaluation(every=0, seq_len=32, batch_size=8),
        checkpoint=config.Checkpoint(every=2, keep=3),
        log=config.Log(every=2, moments_every=0),
    )
    replaced = {
        name: dataclasses.replace(getattr(base, name), **value)
        if isinstance(value, dict)
        else value
        for name, value in sections.items()
    }
    return dataclasses.replace(base, **replaced)


def flags(exp: config.Experiment) -> list[str]:
    """The command-line overrides that turn configs/smoke.py into `exp`."""
    flat = config.flatten(config.to_dict(exp))
    return [
        f"--config.{name}={tuple(value) if isinstance(value, list) else value}"
        for name, value in flat.items()
    ]


def init(model: config.Model, seed: int = 0, dtype=jnp.float32):
    """Parameters of `model`, gains perturbed so that they are seen."""
    params = nn.unbox(
        jax.jit(Transformer(model).init)(
            jax.random.key(seed), jnp.zeros((1, 8), jnp.int32)
        )
    )["params"]
    noise = jax.random.key(seed + 1)

    def perturb(path, leaf):
        if path[-1].key == "gain":
            leaf = leaf + 0.1 * jax.random.normal(noise, leaf.shape)
        return leaf.astype(dtype)

    return jax.tree_util.tree_map_with_path(perturb, params)


def assert_relative(actual, expected, tolerance: float) -> None:
    """Agreement of two trees: norm of the difference over norm of the expected, per tensor."""
    jax.tree.map(
        lambda a, e: _close(
            np.asarray(a, np.float64), np.asarray(e, np.float64), tolerance
        ),
        actual,
        expected,
    )


def _close(actual, expected, tolerance) -> None:
    assert actual.shape == expected.shape
    error = np.linalg.norm(actual - expected) / max(np.linalg.norm(expected), 1e-30)
    assert error <= tolerance, (
        f"relative error {error:.2e} of a tensor of shape {expected.shape}"
    )
