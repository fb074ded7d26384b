"""How well does it predict held-out text?"""

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
from sparsecod_jax.model.loss import cross_entropy, windows
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
    """A function from parameters to the held-out metrics, over the validation split at the fixed evaluation length.

    A second argument is called after each batch, for a caller that counts them or may raise to leave. The function returns
    `loss` (nats a token), `perplexity`, `evaluation_tokens` and, where the data's size as text is known, `bits_per_byte`:
    the loss in bits times the split's tokens a byte.
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
        inputs_BT, targets_BT = windows(tokens_BT1)
        h_BTD, _ = model.apply(
            {"params": params}, inputs_BT, segments_BT, method="hidden"
        )
        return cross_entropy(
            h_BTD, params["head"], targets_BT, weights_BT
        ), weights_BT.sum()

    def evaluate(
        params, after_batch: Callable[[], None] = lambda: None
    ) -> dict[str, float]:
        sums = []
        for tokens, weights in evaluation_batches(
            held_out, batch, rows, cfg.max_tokens
        ):
            masks = (
                segments(tokens[:, :-1], manifest.eos_id)
                if experiment.model.document_masking
                else None
            )
            with jax.set_mesh(mesh):
                sums.append(
                    summed(
                        params,
                        *to_devices((tokens, weights, masks), rows, sharding, batch),
                    )
                )
            jax.block_until_ready(
                sums[-2:-1]
            )  # one batch computes while the next is read, and no more wait
            after_batch()
        loss, count = np.asarray(jax.device_get(sums), np.float64).sum(axis=0).tolist()
        return summary(loss / count, int(count), manifest)

    return evaluate


def summary(loss: float, tokens: int, manifest: Manifest) -> dict[str, float]:
    """Loss in the units that people compare."""
    result = {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "evaluation_tokens": tokens,
    }
    if manifest.validation.text_bytes:
        result["bits_per_byte"] = (
            loss
            / math.log(2)
            * manifest.validation.tokens
            / manifest.validation.text_bytes
        )
    return result
