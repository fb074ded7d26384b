"""Blocks replaced by affine maps, against numpy's least squares; planted blocks."""

import dataclasses

import numpy as np
import pytest

from sparsecod_jax import config
from sparsecod_jax.analysis.usefulness import check, fit, usefulness
from sparsecod_jax.errors import ConfigError
from tests.support import numpy_model, subjects, tiny_configs


def _expected(params, cfg, fitted_on, scored_on, *, transpose=False):
    """Loss ratios by `np.linalg.lstsq` on the activations themselves."""
    inputs = numpy_model.states(params, fitted_on, cfg)
    states = numpy_model.states(params, scored_on, cfg)
    intact = numpy_model.losses(params, states[-1], scored_on, cfg).mean()
    ratios = []
    for layer in range(cfg.n_layers):
        x, y = (inputs[place].reshape(-1, cfg.d_model) for place in (layer, layer + 1))
        solution = np.linalg.lstsq(
            np.concatenate([x, np.ones((len(x), 1))], 1), y, rcond=None
        )[0]
        weights, bias = solution[:-1], solution[-1]
        z = states[layer] @ (weights.T if transpose else weights) + bias
        for later in range(layer + 1, cfg.n_layers):
            z = numpy_model.block(params, later, z, cfg)
        ratios.append(numpy_model.losses(params, z, scored_on, cfg).mean() / intact)
    return ratios


def test_equals_least_squares_by_numpy(trained):
    cfg, params = trained
    tokens = subjects.tokens(cfg, sequences=14)
    with subjects.analysed(cfg, tokens, params) as subject:
        result = usefulness(subject, tokens)
    fitted, scored = tokens[:7], tokens[7:]
    np.testing.assert_allclose(
        result["loss_ratio"], _expected(params, cfg, fitted, scored), rtol=1e-6
    )
    np.testing.assert_allclose(
        result["in_sample"]["loss_ratio"],
        _expected(params, cfg, fitted, fitted),
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        result["as_published"]["loss_ratio"],
        _expected(params, cfg, fitted, fitted, transpose=True),
        rtol=1e-6,
    )
    assert result["score"] == pytest.approx(np.log(result["loss_ratio"]).mean())
    assert result["ci95"][0] < result["score"] < result["ci95"][1]
    for threshold, share in result["share_above"].items():
        assert share["share"] == np.mean(
            np.array(result["loss_ratio"]) > float(threshold)
        )
        assert share["ci95"][0] <= share["ci95"][1]
    assert (result["fitted_on"], result["scored_on"]) == (7, 7)


def test_in_float32_it_is_as_good(trained):
    cfg, params = trained
    tokens = subjects.tokens(cfg, sequences=14)
    with subjects.analysed(cfg, tokens, params, dtype="float32") as subject:
        result = usefulness(subject, tokens)
    np.testing.assert_allclose(
        result["loss_ratio"], _expected(params, cfg, tokens[:7], tokens[7:]), rtol=1e-4
    )


def test_a_block_that_adds_nothing_has_ratio_one():
    tokens = subjects.tokens(tiny_configs.MODEL, sequences=10)
    with subjects.analysed(
        tiny_configs.MODEL,
        tokens,
        subjects.without_output(tiny_configs.init(tiny_configs.MODEL), 1),
    ) as subject:
        result = usefulness(subject, tokens)
    assert result["loss_ratio"][1] == 1
    assert result["loss_ratio"][0] != 1


def test_a_planted_affine_block_has_ratio_one_and_its_transpose_has_not():
    """The FFN rotates.

    For embeddings of one length its norm is a constant, and a channel that is always 1 makes
    its gate a constant too. Each pair of tokens is a random id and the one nearest to its
    rotated embedding, of ids that the other half of the sequences lacks.
    """
    ids, width, rng = 400, 34, np.random.default_rng(0)
    cfg = config.Model(
        d_model=width,
        n_heads=1,
        head_dim=2,
        n_layers=1,
        d_ff=width - 1,
        vocab_size=ids,
        compute_dtype="float32",
    )
    directions = rng.normal(size=(ids, width - 1))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    rotation = np.linalg.qr(rng.normal(size=(width - 1, width - 1)))[0]
    nearest = np.argmax(directions @ rotation @ directions.T, axis=1)
    params = tiny_configs.init(cfg)
    params["embedding"] = np.concatenate([directions, np.ones((ids, 1))], axis=1)
    params["head"] = np.concatenate([directions.T, np.zeros((1, ids))])

    def plant(block):
        block["attention"]["out"][...] = 0
        block["ffn_norm"]["gain"][...] = 1
        block["ffn"]["gate"][...] = np.eye(width)[-1][:, None]
        block["ffn"]["up"][...] = np.eye(width, width - 1)
        block["ffn"]["down"][...] = np.pad(10 * rotation, ((0, 0), (0, 1)))

    drawn = np.concatenate(
        [rng.integers(0, 200, (20, 6)), rng.integers(200, 400, (20, 6))]
    )
    tokens = np.stack([drawn, nearest[drawn]], axis=2).reshape(40, 12)
    with subjects.analysed(
        cfg, tokens, subjects.with_block(params, 0, plant)
    ) as subject:
        result = usefulness(subject, tokens)
    np.testing.assert_allclose(result["loss_ratio"], 1, atol=1e-4)
    assert result["as_published"]["loss_ratio"][0] > 1.1


def test_directions_that_no_token_reaches_are_left_alone():
    """Few different tokens: numpy's solution of least norm is the one."""
    cfg = dataclasses.replace(tiny_configs.MODEL, n_layers=1)
    tokens = np.tile(np.arange(5, dtype=np.int32), (20, 1))
    params = tiny_configs.init(cfg)
    with subjects.analysed(cfg, tokens, params) as subject:
        maps = fit(subject, tokens)
    x, y = (
        state.reshape(-1, cfg.d_model)
        for state in numpy_model.states(params, tokens, cfg)
    )
    inputs = np.concatenate([x, np.ones((len(x), 1))], 1)
    expected = np.linalg.lstsq(inputs, y - x, rcond=1e-7)[0]
    np.testing.assert_allclose(maps.update_LDD[0], expected[:-1], atol=1e-6)
    assert maps.rank_L[0] == np.linalg.matrix_rank(inputs, 1e-7)
    assert maps.condition_L[0] > 1


def test_too_few_tokens_are_refused():
    with pytest.raises(
        ConfigError,
        match=r"2 sequences of 16 tokens can't fit a map of 32 \+ 1 inputs: raise --sequences",
    ):
        check(32, subjects.tokens(tiny_configs.MODEL, sequences=4, length=16))
    check(32, subjects.tokens(tiny_configs.MODEL, sequences=6, length=16))
