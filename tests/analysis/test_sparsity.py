"""Sparsity of weights, attention, activations and experts, against numpy.

And against the values of matrices with a known distribution.
"""

import dataclasses

import numpy as np
import pytest

from sparsecod_jax.analysis import sparsity
from sparsecod_jax.analysis.permutation import permutation
from tests.support import numpy_model, subjects, tiny_configs


def test_gaussian_weights_have_the_gaussian_values():
    result = sparsity.weight_sparsity(
        np.random.default_rng(0).normal(0, 0.3, (1000, 1000))
    )
    assert result["rms"] == pytest.approx(0.3, rel=1e-2)
    for name, value in sparsity.GAUSSIAN.items():
        assert result[name] == pytest.approx(value, rel=2e-2), name


@pytest.mark.parametrize(
    ("matrix", "gini", "hoyer"),
    [
        (np.full((10, 10), -2.0), 0, 0),
        (np.eye(1, 100), 0.99, 1),
        (np.random.default_rng(0).uniform(0, 1, 200_000), 1 / 3, 0.134),
    ],
    ids=["all equal", "one stands out", "uniform"],
)
def test_known_matrices(matrix, gini, hoyer):
    result = sparsity.weight_sparsity(matrix)
    assert result["gini"] == pytest.approx(gini, abs=2e-3)
    assert result["hoyer"] == pytest.approx(hoyer, abs=2e-3)


def test_a_matrix_of_zeros_is_no_division_by_zero():
    assert sparsity.weight_sparsity(np.zeros((3, 3))) == {
        "rms": 0,
        "near_zero_0.01": 0,
        "near_zero_0.1": 0,
        "gini": 0,
        "hoyer": 0,
    }


def test_weights_of_each_kind_and_block(trained):
    cfg, params = trained
    kinds = sparsity.weights(params)["kinds"]
    assert {"attention/query", "attention/out", "ffn/gate", "ffn/down"} < set(kinds)
    assert ("ffn/router" in kinds) == bool(cfg.n_experts)
    assert not any("norm" in kind for kind in kinds)
    w = np.sort(
        np.abs(np.asarray(params["blocks"]["ffn"]["up"][1], np.float64).ravel())
    )
    pairs = np.abs(w[:, None] - w[None, :]).mean()
    assert kinds["ffn/up"]["gini"][1] == pytest.approx(
        pairs / (2 * w.mean()), rel=1e-6
    )  # half the mean difference over the mean
    assert kinds["ffn/up"]["rms"][1] == pytest.approx(np.sqrt((w**2).mean()), rel=1e-6)
    deviation = np.asarray(params["blocks"]["ffn"]["up"][1], np.float64).std()
    assert kinds["ffn/up"]["near_zero_0.1"][1] == pytest.approx(
        (w < 0.1 * deviation).mean(), rel=1e-6
    )


def _attention(params, cfg, tokens, segments=None):
    """Measures by block, {measure: [L][H]}, with a loop over heads and positions."""
    result = {
        name: np.zeros((cfg.n_layers, cfg.n_heads)) for name in sparsity.ATTENTION
    }
    states = numpy_model.states(params, tokens, cfg)
    group = cfg.n_heads // cfg.n_kv_heads
    for layer in range(cfg.n_layers):
        x = numpy_model._norm(
            states[layer],
            np.asarray(params["blocks"]["attention_norm"]["gain"][layer], np.float64),
            cfg,
        )
        query, key, value = (
            np.asarray(params["blocks"]["attention"][name][layer], np.float64)
            for name in ("query", "key", "value")
        )
        q, k = (
            numpy_model._rotate(np.einsum("btd,dhk->bthk", x, kernel), cfg.rope_theta)
            for kernel in (query, key)
        )
        v = np.einsum("btd,dhk->bthk", x, value)
        for head in range(cfg.n_heads):
            rows = {name: [] for name in sparsity.ATTENTION}
            for b in range(len(tokens)):
                mine = {name: [] for name in sparsity.ATTENTION}
                for t in range(tokens.shape[1]):
                    seen = [
                        s
                        for s in range(t + 1)
                        if segments is None or segments[b, s] == segments[b, t]
                    ]
                    if len(seen) == 1:
                        continue
                    logits = (
                        k[b, seen, head // group]
                        @ q[b, t, head]
                        / np.sqrt(cfg.head_dim)
                    )
                    a, n = np.exp(logits) / np.exp(logits).sum(), len(seen)
                    mine["density"].append(1 / (n * (a**2).sum()))
                    mine["concentration"].append(n * (a**2).sum())
                    mine["entropy"].append(-(a * np.log(a)).sum() / np.log(n))
                    mine["small_relative"].append((a < 0.1 / n).mean())
                    mine["small_absolute"].append((a < 1e-3).mean())
                    mine["sink"].append(a[0])
                    mine["gain"].append(((a @ v[b, seen, head // group]) ** 2).sum())
                mine["gain"] /= (v[b, :, head // group] ** 2).sum(-1).mean()
                for name, values in mine.items():
                    rows[name].append(np.mean(values))
            for name, values in rows.items():
                result[name][layer, head] = np.mean(values)
    return result


@pytest.mark.parametrize("masked", [False, True], ids=["causal", "within documents"])
def test_attention_equals_numpy(masked):
    cfg = dataclasses.replace(
        tiny_configs.MODEL, document_masking=masked, init_std=0.6
    )  # logits large enough for weights near 0
    tokens, params = subjects.tokens(cfg, length=21), tiny_configs.init(cfg)
    tokens[:, 8] = 9
    segments = np.cumsum(tokens == 9, axis=1) - (tokens == 9) if masked else None
    with subjects.analysed(
        cfg, tokens, params, eos_id=9 if masked else None
    ) as subject:
        result = sparsity.attention(subject, tokens)
    assert result["probe_length"] == 21
    blocks = (
        1 if masked else cfg.n_layers
    )  # numpy's blocks know no documents, but the first has the same input
    for name, values in _attention(params, cfg, tokens, segments).items():
        np.testing.assert_allclose(
            result["heads"][name][:blocks], values[:blocks], rtol=1e-6, err_msg=name
        )
    for name, value in (
        ("density", 1),
        ("concentration", 1),
        ("entropy", 1),
        ("small_relative", 0),
        ("small_absolute", 0),
    ):
        np.testing.assert_allclose(result["uniform"][name], value, atol=1e-12)


def test_attention_of_zero_queries_is_uniform():
    tokens = subjects.tokens(tiny_configs.MODEL)
    params = subjects.with_block(
        tiny_configs.init(tiny_configs.MODEL),
        0,
        lambda block: block["attention"]["query"].fill(0),
    )
    with subjects.analysed(tiny_configs.MODEL, tokens, params) as subject:
        result = sparsity.attention(subject, tokens)
    for name in sparsity.ATTENTION:
        np.testing.assert_allclose(
            result["heads"][name][0], result["uniform"][name][0], rtol=1e-10, atol=1e-12
        )
    assert np.all(np.array(result["heads"]["density"][1]) < 1)


def test_activations_equal_numpy(trained):
    cfg, params = trained
    tokens = subjects.tokens(cfg)
    with subjects.analysed(cfg, tokens, params) as subject:
        result = sparsity.activations(subject, tokens)
    assert set(result) == (
        {"massive"}
        if cfg.n_experts
        else {"massive", "near_zero", "hoyer", "participation"}
    )
    states = numpy_model.states(params, tokens, cfg)
    for layer in range(cfg.n_layers):
        size = np.abs(states[layer + 1])
        assert result["massive"][layer] == pytest.approx(
            (size.max(-1) / np.median(size, -1)).mean(), rel=1e-6
        )
        if cfg.n_experts:
            continue
        u = states[layer] + numpy_model.attention_branch(
            params, layer, states[layer], cfg
        )
        block = {
            name: np.asarray(leaf[layer], np.float64)
            for name, leaf in params["blocks"]["ffn"].items()
        }
        x = numpy_model._norm(
            u, np.asarray(params["blocks"]["ffn_norm"]["gain"][layer], np.float64), cfg
        )
        gate = x @ block["gate"]
        h = gate / (1 + np.exp(-gate)) * (x @ block["up"])
        assert result["near_zero"][layer] == pytest.approx(
            (np.abs(h) < 0.01 * np.sqrt((h**2).mean(-1, keepdims=True))).mean(),
            rel=1e-6,
        )
        width = cfg.d_ff
        hoyer = (np.sqrt(width) - np.abs(h).sum(-1) / np.linalg.norm(h, axis=-1)) / (
            np.sqrt(width) - 1
        )
        assert result["hoyer"][layer] == pytest.approx(hoyer.mean(), rel=1e-6)
        assert result["participation"][layer] == pytest.approx(
            ((h**2).sum(-1) ** 2 / (width * (h**4).sum(-1))).mean(), rel=1e-6
        )


def test_experts_equal_numpy():
    cfg = tiny_configs.MIXTURE
    tokens, params = subjects.tokens(cfg, sequences=3), tiny_configs.init(cfg)
    with subjects.analysed(cfg, tokens, params) as subject:
        result = sparsity.experts(subject, tokens)
        squares = sparsity.gate_squares(subject, tokens)
    states = numpy_model.states(params, tokens, cfg)
    intact = numpy_model.losses(params, states[-1], tokens, cfg).mean()
    for layer in range(cfg.n_layers):
        u = states[layer] + numpy_model.attention_branch(
            params, layer, states[layer], cfg
        )
        assert squares[layer] == pytest.approx(
            numpy_model.ffn_branch(params, layer, u, cfg)[1]["router/gate_square_sum"],
            rel=1e-6,
        )
        normed = numpy_model._norm(
            u, np.asarray(params["blocks"]["ffn_norm"]["gain"][layer], np.float64), cfg
        )
        chosen = np.argsort(
            -(
                normed
                @ np.asarray(params["blocks"]["ffn"]["router"][layer], np.float64)
            ),
            -1,
        )[..., : cfg.top_k]
        used = np.bincount(chosen.ravel(), minlength=cfg.n_experts) / chosen.size
        np.testing.assert_allclose(result["utilisation"][layer], used)
    for expert in range(cfg.n_experts):
        silenced = subjects.with_block(
            params, 1, lambda block, expert=expert: block["ffn"]["down"][expert].fill(0)
        )
        without = numpy_model.losses(
            silenced, numpy_model.states(silenced, tokens, cfg)[-1], tokens, cfg
        ).mean()
        assert result["importance"][1][expert] == pytest.approx(
            without / intact - 1, rel=1e-6, abs=1e-12
        )


def test_a_mixture_on_a_mesh_has_the_same_scores():
    """Two experts a device; three sequences on two devices."""
    cfg = tiny_configs.MIXTURE
    tokens, params = subjects.tokens(cfg, sequences=3), tiny_configs.init(cfg)
    result = []
    for mesh in ((1, 1, 1, 1), (1, 2, 2, 2)):
        with subjects.analysed(cfg, tokens, params, mesh=mesh) as subject:
            result.append(
                (
                    sparsity.experts(subject, tokens),
                    permutation(subject, tokens)["matrix"],
                )
            )
    np.testing.assert_allclose(result[0][0]["utilisation"], result[1][0]["utilisation"])
    np.testing.assert_allclose(
        result[0][0]["importance"], result[1][0]["importance"], rtol=1e-8, atol=1e-12
    )
    np.testing.assert_allclose(result[0][1], result[1][1], rtol=1e-8)
