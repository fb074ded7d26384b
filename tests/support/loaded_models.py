"""Loaded models for tests: tiny, with any tokenizer, on any mesh."""

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
STEP = 3


class Letters:
    """A tokenizer with one id per character, as in ASCII, so 32 for a space.

    The end of a document is never written, and the start is 1.
    """

    eos_id, start_id, vocab_size, before = 1000, 1, 128, ()

    def ids(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    beginning = ids

    def decode(self, ids) -> str:
        return "".join(map(chr, ids))


def sharpened(model: config.Model, seed: int = 0) -> Any:
    """Parameters whose losses differ."""
    params = tiny_configs.init(model, seed)
    return jax.device_get(params | {"head": SHARPER * params["head"]})


def load(
    params: Any = None,
    model: config.Model = tiny_configs.MODEL,
    *,
    sizes: tuple[int, int, int, int] = (1, 1, 1, 1),
    max_seq_len: int = 64,
    tokenizer: Any = None,
) -> LoadedModel:
    """A loaded model on a mesh of these sizes."""
    mesh = make_mesh(config.Mesh(*sizes), jax.devices()[: int(np.prod(sizes))])
    net = Transformer(model, config.Kernels(attention="xla", remat="none"))
    tokens_BT = jax.ShapeDtypeStruct((1, 8), np.int32)
    boxed = jax.eval_shape(net.init, jax.random.key(0), tokens_BT)["params"]
    if params is None:
        params = sharpened(model)
    on_mesh = jax.tree.map(jax.device_put, params, tree_shardings(mesh, boxed))
    source = ModelSource(
        path=epath.Path("tiny"),
        model=model,
        max_seq_len=max_seq_len,
        experiment=None,
        restore=lambda abstract: (STEP, params),
        tokenizer=lambda: cast(Any, tokenizer or Letters()),
    )
    return LoadedModel(source, net, nn.unbox(on_mesh), mesh, STEP, "digest")
