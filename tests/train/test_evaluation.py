"""Held-out loss against a numpy forward over every prediction of the validation split."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from sparsecod_jax import config
from sparsecod_jax.data.store import read_manifest
from sparsecod_jax.parallel.layout import resolve
from sparsecod_jax.parallel.sharding import make_mesh
from sparsecod_jax.train.evaluation import evaluator, summary
from tests.support import numpy_model, tiny_configs

LENGTH = 48


@pytest.fixture(scope="module")
def params():
    """Sharpened, so that the loss differs from that of a uniform guess."""
    made = tiny_configs.init(tiny_configs.MODEL)
    return jax.device_get(made | {"head": 4 * made["head"]})


@pytest.fixture(scope="module")
def held_out(tokens):
    """The validation stream, read from its files."""
    shards = [np.load(file) for file in sorted(tokens.glob("validation-*.npy"))]
    return np.concatenate(shards).astype(np.int64)


@pytest.fixture(scope="module")
def losses(held_out, params):
    """The loss of each prediction in nats, in order.

    A window of LENGTH does not depend on the one before.
    """
    parts = []
    for start in range(0, len(held_out) - 1, LENGTH):
        window = held_out[start : start + LENGTH + 1]
        logits, _ = numpy_model.forward(params, window[None, :-1], tiny_configs.MODEL)
        picked = logits[0, np.arange(len(window) - 1), window[1:]]
        parts.append(np.log(np.exp(logits[0]).sum(-1)) - picked)
    return np.concatenate(parts)


def _evaluate(tokens, params, *, devices=1, **evaluation):
    experiment = tiny_configs.experiment(evaluation={"seq_len": LENGTH, **evaluation})
    here = jax.devices()[:devices]
    experiment = dataclasses.replace(experiment, mesh=config.Mesh(1, devices, 1, 1))
    layout = resolve(experiment, here)
    mesh = make_mesh(layout.mesh, here)
    return evaluator(experiment, layout, mesh, tokens, read_manifest(tokens, ""))(
        params
    )


def test_equals_numpy_over_all_predictions(tokens, params, held_out, losses):
    assert len(losses) == len(held_out) - 1
    assert len(losses) % LENGTH, "the last window is to be padded"
    assert -(-len(losses) // LENGTH) % 8, "the last batch is to be padded"
    found = _evaluate(tokens, params, batch_size=8)
    assert found["evaluation_tokens"] == len(held_out) - 1
    assert found["loss"] == pytest.approx(losses.mean(), rel=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(losses.mean()), rel=1e-5)
    uniform = math.log(tiny_configs.MODEL.vocab_size)
    assert abs(found["loss"] - uniform) > 0.1


@pytest.mark.parametrize(("batch_size", "devices"), [(3, 1), (3, 8), (16, 8)])
def test_does_not_depend_on_batch_or_devices(
    tokens, params, losses, batch_size, devices
):
    found = _evaluate(tokens, params, batch_size=batch_size, devices=devices)
    assert found["evaluation_tokens"] == len(losses)
    assert found["loss"] == pytest.approx(losses.mean(), rel=1e-6)


def test_max_tokens_is_rounded_up_to_whole_windows(tokens, params, losses):
    found = _evaluate(tokens, params, batch_size=2, max_tokens=2 * LENGTH + 1)
    in_all = -(-len(losses) // LENGTH)
    spread = np.mean(
        [
            losses[start * LENGTH : (start + 1) * LENGTH].mean()
            for start in (0, in_all // 3, 2 * in_all // 3)
        ]
    )
    assert found["evaluation_tokens"] == 3 * LENGTH
    assert found["loss"] == pytest.approx(spread, rel=1e-6)
    assert abs(spread - losses.mean()) > 1e-4 * losses.mean()
    more_than_all = _evaluate(tokens, params, batch_size=8, max_tokens=10**9)
    assert more_than_all["evaluation_tokens"] == len(losses)


def test_bits_per_byte(tokens, corpus, params, losses):
    """Nats become bits, and tokens become the bytes of their text.

    Every file of the corpus is in one of the splits.
    """
    manifest = read_manifest(tokens, "")
    split = manifest.validation
    sizes = [len(file.read_bytes()) for file in corpus.glob("*.txt")]
    assert manifest.train.text_bytes + split.text_bytes == sum(sizes)

    metrics = _evaluate(tokens, params, batch_size=8)
    by_hand = losses.mean() / math.log(2) * split.tokens / split.text_bytes
    assert metrics["bits_per_byte"] == pytest.approx(by_hand, rel=1e-6)

    # Two bits per token, of four bytes each.
    loss = 2 * math.log(2)
    split = dataclasses.replace(split, tokens=1000, text_bytes=4000)
    manifest = dataclasses.replace(manifest, validation=split)
    expected = {
        "loss": loss,
        "perplexity": 4,
        "evaluation_tokens": 999,
        "bits_per_byte": 0.5,
    }
    assert summary(loss, 999, manifest) == pytest.approx(expected)


def test_bits_per_byte_is_left_out_where_only_tokens_are_known(tokens):
    manifest = read_manifest(tokens, "")
    unknown = dataclasses.replace(
        manifest, validation=dataclasses.replace(manifest.validation, text_bytes=0)
    )
    assert set(summary(1.0, 10, unknown)) == {"loss", "perplexity", "evaluation_tokens"}


def test_an_absurd_loss_is_still_a_number(tokens):
    assert math.isfinite(summary(5000.0, 10, read_manifest(tokens, ""))["perplexity"])
