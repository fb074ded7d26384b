"""Predicted variance, against drawn models; and what it is made of, against sampling."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from sparsecod_jax import config
from sparsecod_jax.analysis import theory
from sparsecod_jax.model.transformer import Transformer

BASE = config.Model(
    d_model=256,
    n_layers=5,
    n_heads=8,
    d_ff=704,
    vocab_size=2048,
    compute_dtype="float32",
)
SEEDS = 4
CASES = {
    "multi-head": ({}, 256),
    "short": ({}, 32),
    "long": ({}, 384),
    "grouped": ({"n_kv_heads": 2}, 128),
    "layer norm scaling": ({"layer_norm_scaling": True}, 128),
    "scaled FFN": ({"ffn_scale": 0.3}, 128),
    "documents": ({"document_masking": True}, 128),
    "mixture": ({"n_experts": 16, "top_k": 4, "d_ff": 192}, 128),
    "short mixture": ({"n_experts": 16, "top_k": 4, "d_ff": 192}, 32),
    "mixture with normalised gates and a shared expert": (
        {
            "n_experts": 16,
            "top_k": 2,
            "d_ff": 192,
            "normalize_gates": True,
            "shared_expert": True,
            "d_shared": 192,
        },
        128,
    ),
}


@pytest.mark.parametrize(("change", "length"), CASES.values(), ids=CASES)
def test_predicts_drawn_models(change, length):
    cfg = dataclasses.replace(BASE, **change)
    model = Transformer(cfg)
    init = jax.jit(model.init)
    measure = jax.jit(
        lambda params, *rows: model.apply({"params": params}, *rows, method="hidden")[
            1
        ]["variance/residual"]
    )
    measured, predicted = [], []
    for seed in range(SEEDS):
        params = nn.unbox(init(jax.random.key(seed), jnp.zeros((1, 8), jnp.int32)))[
            "params"
        ]
        tokens = (
            np.random.default_rng(seed).zipf(1.3, (2, length)) % cfg.vocab_size
        )  # tokens repeat, as in text
        segments = (
            np.arange(length)[None] // 16 + 0 * tokens if cfg.document_masking else None
        )
        measured.append(measure(params, tokens, segments))
        predicted.append(
            theory.residual_variance(
                cfg, theory.measured_scales(params), tokens, segments
            )
        )
    np.testing.assert_allclose(np.mean(predicted, 0), np.mean(measured, 0), rtol=0.15)


def test_sizes_are_mean_squares():
    params = nn.unbox(
        Transformer(BASE).init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))
    )["params"]
    sizes = theory.measured_scales(params)
    np.testing.assert_allclose(sizes.query, BASE.init_std**2, rtol=0.05)
    np.testing.assert_allclose(sizes.attention_gain, 1)
    assert sizes.embedding == pytest.approx(0.02**2, rel=0.05)
    assert sizes.router is None


def test_silu_products_equal_sampling():
    rng = np.random.default_rng(0)
    x, fresh = np.sqrt(0.8) * rng.standard_normal((2, 400_000))

    def silu(z):
        return z / (1 + np.exp(-z))

    for cosine, result in zip(
        theory.COSINES[::10], theory.silu_products(0.8)[::10], strict=True
    ):
        sampled = (silu(x) * silu(cosine * x + np.sqrt(1 - cosine**2) * fresh)).mean()
        assert result == pytest.approx(sampled, abs=2e-3)
    assert theory.silu_products(0.8192)[-1] == pytest.approx(0.2816, abs=1e-3)


def test_gates_of_a_flat_router():
    cfg = dataclasses.replace(BASE, n_experts=16, top_k=4)
    assert theory.gate_products(cfg, 1e-6)[-1] == pytest.approx(4 / 16**2, rel=1e-3)
    normalized = dataclasses.replace(cfg, normalize_gates=True)
    assert theory.gate_products(normalized, 1e-6)[-1] == pytest.approx(1 / 4, rel=1e-3)


def test_measured_attention_and_gates_are_put_in():
    cfg = dataclasses.replace(BASE, n_experts=16, top_k=4, n_layers=2)
    params = nn.unbox(
        Transformer(cfg).init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))
    )["params"]
    sizes, tokens = (
        theory.measured_scales(params),
        np.random.default_rng(0).integers(0, cfg.vocab_size, (1, 64)),
    )
    own = theory.residual_variance(cfg, sizes, tokens)
    uniform = theory.residual_variance(cfg, sizes, tokens, None, np.ones(2))
    single = theory.residual_variance(
        cfg, sizes, tokens, None, np.full(2, 1e9)
    )  # all weight on one key
    assert uniform[0] < own[0] < single[0]
    gated = theory.residual_variance(cfg, sizes, tokens, None, None, np.full(2, 0.5))
    assert gated[0] > own[0]
