"""How well does it predict held-out text?

Evaluation: the loss on the validation split, as sums over batches of B rows and T
positions.
"""

import math
from collections.abc import Callable

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from sparsecod_jax.config import Experiment
from sparsecod_jax.data.pipeline import (
    evaluation_batches,
    local_rows,
    segments,
    to_devices,
)
from sparsecod_jax.data.store import Manifest, Windows
from sparsecod_jax.model.transformer import Transformer
from sparsecod_jax.parallel.layout import Layout
from sparsecod_jax.parallel.sharding import batch_sharding, ways


def evaluator(
    experiment: Experiment,
    layout: Layout,
    mesh: Mesh,
    directory: epath.Path,
    manifest: Manifest,
) -> Callable[..., dict[str, float]]:
    """A function from parameters to the held-out metrics.

    It reads the validation split in windows of the fixed evaluation length. Its second
    argument is called after each batch, for a caller that counts them, or that may raise
    to leave.

    It returns `loss` (nats per token), `perplexity`, `evaluation_tokens` and, where the
    data's size as text is known, `bits_per_byte`: the loss in bits per token times the
    split's tokens per byte.
    """
    cfg = experiment.evaluation
    model = Transformer(experiment.model, layout.kernels)
    held_out = Windows(directory, manifest, manifest.validation, cfg.seq_len)
    sharding = batch_sharding(mesh)
    with jax.set_mesh(mesh):
        batch = math.ceil(cfg.batch_size / ways("batch")) * ways("batch")
    rows = local_rows(sharding, batch)

    @jax.jit
    def summed(params, tokens_BT1, weights_BT, segments_BT):
        loss, _ = model.apply(
            {"params": params}, tokens_BT1, segments_BT, weights_BT, method="loss"
        )
        return loss, weights_BT.sum()

    def evaluate(
        params, after_batch: Callable[[], None] = lambda: None
    ) -> dict[str, float]:
        sums = []
        batches = evaluation_batches(held_out, batch, rows, cfg.max_tokens)
        for tokens, weights in batches:
            masks = None
            if experiment.model.document_masking:
                masks = segments(tokens[:, :-1], manifest.eos_id)
            arrays = (tokens, weights, masks)
            with jax.set_mesh(mesh):
                on_devices = to_devices(arrays, rows, sharding, batch)
                sums.append(summed(params, *on_devices))
            # One batch is computed while the next is read; no more are queued.
            jax.block_until_ready(sums[-2:-1])
            after_batch()
        totals = np.asarray(jax.device_get(sums), np.float64).sum(axis=0)
        loss, count = totals.tolist()
        return summary(loss / count, int(count), manifest)

    return evaluate


def summary(loss: float, tokens: int, manifest: Manifest) -> dict[str, float]:
    """The loss (nats per token) in the units that people compare."""
    result = {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),  # exp overflows from 710 on
        "evaluation_tokens": tokens,
    }
    split = manifest.validation
    if split.text_bytes:
        bits = loss / math.log(2)
        result["bits_per_byte"] = bits * split.tokens / split.text_bytes
    return result
