"""Finished models for tests: tiny, with any tokenizer, on any mesh."""

from typing import Any, cast

import jax
import numpy as np
from etils import epath
from flax import linen as nn

from sparsecod_jax import config
from sparsecod_jax.model.transformer import Transformer
from sparsecod_jax.parallel.sharding import make_mesh, tree_shardings
from sparsecod_jax.pretrained.load import LoadedModel, ModelSource
from tests.support import tiny_configs

SHARPER = 4  # factor of the head, so that predictions differ from a uniform guess


class Letters:
    """One id a character, 32 for a space as in ASCII; the end of a document is never written, the start is 1."""

    eos_id, start_id, vocab_size, before = 1000, 1, 128, ()

    def ids(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    beginning = ids

    def decode(self, ids) -> str:
        return "".join(map(chr, ids))


def sharpened(model: config.Model, seed: int = 0) -> Any:
    """Parameters whose losses differ."""
    made = tiny_configs.init(model, seed)
    return jax.device_get(made | {"head": SHARPER * made["head"]})


def finished(
    params: Any = None,
    model: config.Model = tiny_configs.MODEL,
    *,
    sizes: tuple[int, int, int, int] = (1, 1, 1, 1),
    max_seq_len: int = 64,
    tokenizer: Any = None,
) -> LoadedModel:
    """A finished model on a mesh of these sizes."""
    mesh = make_mesh(config.Mesh(*sizes), jax.devices()[: int(np.prod(sizes))])
    net = Transformer(model, config.Kernels(attention="xla", remat="none"))
    boxed = jax.eval_shape(
        net.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 8), np.int32)
    )["params"]
    params = sharpened(model) if params is None else params
    placed = jax.tree.map(jax.device_put, params, tree_shardings(mesh, boxed))
    source = ModelSource(
        epath.Path("tiny"),
        model,
        max_seq_len,
        None,
        lambda abstract: (3, params),
        lambda: cast(Any, tokenizer or Letters()),
    )
    return LoadedModel(source, net, nn.unbox(placed), mesh, 3, "digest")
