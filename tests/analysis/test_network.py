"""The network with blocks as data, against numpy and against training's own forward pass."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsecod_jax.analysis import network
from sparsecod_jax.model.attention import reference_attention
from tests.support import numpy_model, subjects, tiny_configs

SCALED = dataclasses.replace(tiny_configs.MODEL, layer_norm_scaling=True)


@pytest.mark.parametrize(
    "cfg",
    [tiny_configs.MODEL, SCALED, tiny_configs.MIXTURE],
    ids=["dense", "layer norm scaling", "mixture"],
)
def test_states_equal_numpy(cfg):
    tokens, params = subjects.tokens(cfg), tiny_configs.init(cfg)
    with subjects.analysed(cfg, tokens, params) as subject:
        result = np.asarray(network.states(subject.net, subject.params, tokens, None))
        applied: Any = subject.net.apply(
            {"params": subject.params}, jnp.asarray(tokens)
        )
        logits, stats = jax.device_get(applied)
    np.testing.assert_allclose(
        result, numpy_model.states(params, tokens, cfg), rtol=1e-9, atol=1e-12
    )
    np.testing.assert_allclose(
        result[1:].var(axis=-1, ddof=1).mean(axis=(1, 2)),
        stats["variance/residual"],
        rtol=1e-10,
    )
    np.testing.assert_allclose(
        numpy_model.decode(params, result[-1], cfg), logits, rtol=1e-8, atol=1e-10
    )


@pytest.mark.parametrize("first", [0, 1, 3])
def test_goes_on_from_any_depth(first):
    tokens, params = (
        subjects.tokens(tiny_configs.MODEL),
        tiny_configs.init(tiny_configs.MODEL),
    )
    with subjects.analysed(tiny_configs.MODEL, tokens, params) as subject:
        rows = next(subject.rows(tokens))
        states = network.states(subject.net, subject.params, rows.tokens, None)
        result = network.tail_losses(
            subject.net, subject.params, states[first], first, rows
        )
    np.testing.assert_allclose(
        result,
        numpy_model.losses(
            params,
            numpy_model.states(params, tokens, tiny_configs.MODEL)[-1],
            tokens,
            tiny_configs.MODEL,
        ),
        rtol=1e-10,
    )


def test_branches_alone():
    cfg, tokens = SCALED, subjects.tokens(SCALED)
    params = tiny_configs.init(cfg)
    x = numpy_model.states(params, tokens, cfg)[2]
    with subjects.analysed(cfg, tokens, params) as subject:
        attended = network.with_attention(
            subject.net, subject.params, jnp.asarray(x), 2, None
        )
        fed = network.with_ffn(subject.net, subject.params, jnp.asarray(x), 2)
    np.testing.assert_allclose(
        attended,
        x + numpy_model.attention_branch(params, 2, x, cfg),
        rtol=1e-9,
        atol=1e-12,
    )
    np.testing.assert_allclose(
        fed, x + numpy_model.ffn_branch(params, 2, x, cfg)[0], rtol=1e-9, atol=1e-12
    )


def test_attention_can_be_given():
    """A kernel of one's own stands in for the named one."""
    cfg, tokens = tiny_configs.MODEL, subjects.tokens(tiny_configs.MODEL)

    def halved(q, k, v, segments):
        return 0.5 * reference_attention(q, k, v)

    with subjects.analysed(cfg, tokens) as subject:
        x = network.states(subject.net, subject.params, tokens, None)[0]
        whole = (
            network.BlockAt(subject.net, subject.params, 0, 0).with_attention(x, None)
            - x
        )
        half = (
            network.BlockAt(
                subject.net, subject.params, 0, 0, kernel=halved
            ).with_attention(x, None)
            - x
        )
        np.testing.assert_allclose(half, whole / 2, rtol=1e-9, atol=1e-12)


def test_a_block_is_asked_for_by_a_traced_number():
    cfg, tokens = tiny_configs.MODEL, subjects.tokens(tiny_configs.MODEL)
    params = tiny_configs.init(cfg)
    with subjects.analysed(cfg, tokens, params) as subject:
        x = network.states(subject.net, subject.params, tokens, None)[0]
        swapped = jax.jit(
            lambda number, position: network.BlockAt(
                subject.net, subject.params, number, position
            ).output(x, None)
        )
        np.testing.assert_allclose(
            swapped(2, 1),
            numpy_model.block(params, 2, np.asarray(x), cfg, 1),
            rtol=1e-9,
            atol=1e-12,
        )
