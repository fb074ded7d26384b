"""Models to be analysed, in float64."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsecod_jax import config
from sparsecod_jax.analysis.subject import Subject
from sparsecod_jax.model.transformer import Transformer
from sparsecod_jax.parallel.sharding import make_mesh
from tests.support import tiny_configs


@contextlib.contextmanager
def analysed(
    model: config.Model,
    tokens_NT,
    params: Any = None,
    *,
    mesh=(1, 1, 1, 1),
    eos_id=None,
    dtype: Any = "float64",
) -> Iterator[Subject]:
    """A model on a mesh, with parameters drawn if none are given, while the context lasts."""
    model = dataclasses.replace(model, compute_dtype=dtype, residual_dtype=dtype)
    net = Transformer(model, config.Kernels(attention="reference", remat="none"))
    params = tiny_configs.init(model) if params is None else params
    built = make_mesh(config.Mesh(*mesh), jax.devices()[: int(np.prod(mesh))])
    with jax.enable_x64(dtype == "float64"), jax.set_mesh(built):
        params = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), dtype), params)
        yield Subject(
            net, params, built, np.asarray(tokens_NT, np.int32), eos_id, 0, ""
        )


def tokens(
    model: config.Model, sequences: int = 5, length: int = 12, seed: int = 0
) -> np.ndarray:
    """Random ids, [N, T] int32."""
    return (
        np.random.default_rng(seed)
        .integers(0, model.vocab_size, (sequences, length))
        .astype(np.int32)
    )


def with_block(params: Any, layer: int, change) -> Any:
    """The parameters with `change` made to a copy of one block's."""
    blocks = jax.tree.map(np.array, params["blocks"])
    block = jax.tree.map(lambda leaf: leaf[layer], blocks)
    changed = change(block) or block
    jax.tree.map(
        lambda stacked, leaf: stacked.__setitem__(layer, leaf), blocks, changed
    )
    return {**params, "blocks": blocks}


def without_output(params: Any, layer: int) -> Any:
    """The parameters with a block that adds nothing."""

    def silence(block):
        block["attention"]["out"][...] = 0
        block["ffn"]["down"][...] = 0
        if "shared" in block["ffn"]:
            block["ffn"]["shared"]["down"][...] = 0

    return with_block(params, layer, silence)


def identical_blocks(params: Any) -> Any:
    """The parameters with every block a copy of the first."""
    return {
        **params,
        "blocks": jax.tree.map(
            lambda leaf: np.repeat(np.array(leaf[:1]), len(leaf), axis=0),
            params["blocks"],
        ),
    }
