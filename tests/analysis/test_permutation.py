"""Swapped blocks, against numpy."""

import dataclasses

import numpy as np

from sparsecod_jax.analysis.permutation import permutation
from tests.support import numpy_model, subjects, tiny_configs


def _expected(params, cfg, tokens):
    intact = numpy_model.losses(
        params, numpy_model.states(params, tokens, cfg)[-1], tokens, cfg
    ).mean()
    matrix = np.zeros((cfg.n_layers, cfg.n_layers))
    for i in range(cfg.n_layers):
        for j in range(i + 1, cfg.n_layers):
            order = list(range(cfg.n_layers))
            order[i], order[j] = j, i
            x = numpy_model.embed(params, tokens)
            for position, layer in enumerate(order):
                x = numpy_model.block(params, layer, x, cfg, position)
            matrix[i, j] = matrix[j, i] = (
                abs(numpy_model.losses(params, x, tokens, cfg).mean() - intact) / intact
            )
    return matrix


def test_equals_numpy(trained):
    cfg, params = trained
    tokens = subjects.tokens(cfg)
    with subjects.analysed(cfg, tokens, params) as subject:
        result = permutation(subject, tokens)
    expected = _expected(params, cfg, tokens)
    np.testing.assert_allclose(result["matrix"], expected, rtol=1e-6, atol=1e-12)
    assert result["score"] == np.mean(
        [result["matrix"][0][1], result["matrix"][0][2], result["matrix"][1][2]]
    )
    assert result["ci95"][0] <= result["score"] <= result["ci95"][1]


def test_the_factor_of_layer_norm_scaling_stays_in_its_place():
    cfg = dataclasses.replace(tiny_configs.MODEL, layer_norm_scaling=True)
    params, tokens = tiny_configs.init(cfg), subjects.tokens(cfg)
    with subjects.analysed(cfg, tokens, params) as subject:
        np.testing.assert_allclose(
            permutation(subject, tokens)["matrix"],
            _expected(params, cfg, tokens),
            rtol=1e-6,
        )


def test_identical_blocks_can_be_swapped():
    tokens = subjects.tokens(tiny_configs.MODEL)
    with subjects.analysed(
        tiny_configs.MODEL,
        tokens,
        subjects.identical_blocks(tiny_configs.init(tiny_configs.MODEL)),
    ) as subject:
        result = permutation(subject, tokens)
    np.testing.assert_allclose(result["matrix"], np.zeros((3, 3)), atol=1e-14)


def test_a_single_block_has_no_score():
    cfg = dataclasses.replace(tiny_configs.MODEL, n_layers=1)
    tokens = subjects.tokens(cfg)
    with subjects.analysed(cfg, tokens) as subject:
        assert permutation(subject, tokens) == {"matrix": [[0.0]], "score": None}
