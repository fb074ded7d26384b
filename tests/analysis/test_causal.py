"""Skipped blocks, against numpy."""

import dataclasses

import numpy as np

from sparsecod_jax.analysis.causal import causal
from tests.support import numpy_model, subjects, tiny_configs


def _changes(params, cfg, tokens, intervene, measured=slice(None)):
    """Sums over measured tokens of |change of the update| by s and l, and of |update| by l.

    `intervene` gives the residual stream after block s.
    """
    states = numpy_model.states(params, tokens, cfg)
    intact = [
        (states[later + 1] - states[later])[:, measured]
        for later in range(cfg.n_layers)
    ]
    changed = np.zeros((cfg.n_layers, cfg.n_layers))
    for s in range(cfg.n_layers):
        x = intervene(states, s)
        for later in range(s + 1, cfg.n_layers):
            y = numpy_model.block(params, later, x, cfg)
            changed[s, later] = np.linalg.norm(
                (y - x)[:, measured] - intact[later], axis=-1
            ).sum()
            x = y
    return changed, np.array(
        [np.linalg.norm(update, axis=-1).sum() for update in intact]
    )


def _expected(*args):
    changed, intact = _changes(*args)
    return changed / intact


def test_equals_numpy(trained):
    cfg, params = trained
    tokens = subjects.tokens(cfg, length=20)
    with subjects.analysed(cfg, tokens, params) as subject:
        result = causal(subject, tokens, seed=0)

    def without_attention(states, s):
        return states[s] + numpy_model.ffn_branch(params, s, states[s], cfg)[0]

    def without_ffn(states, s):
        return states[s] + numpy_model.attention_branch(params, s, states[s], cfg)

    matrix = _expected(params, cfg, tokens, lambda states, s: states[s])
    np.testing.assert_allclose(result["matrix"], matrix, rtol=1e-8)
    np.testing.assert_allclose(
        result["attention"]["matrix"],
        _expected(params, cfg, tokens, without_attention),
        rtol=1e-8,
    )
    np.testing.assert_allclose(
        result["ffn"]["matrix"], _expected(params, cfg, tokens, without_ffn), rtol=1e-8
    )
    above = [matrix[s, later] for s in range(3) for later in range(s + 1, 3)]
    np.testing.assert_allclose(result["score"], np.mean(above))
    np.testing.assert_allclose(result["score_all"], np.sum(above) / 9)
    np.testing.assert_allclose(
        result["score_rows"], np.mean([matrix[0, 1:].mean(), matrix[1, 2]])
    )
    assert result["ci95"][0] < result["score"] < result["ci95"][1]


def test_future_tokens_only(trained):
    cfg, params = trained
    tokens = subjects.tokens(cfg, length=24)
    with subjects.analysed(cfg, tokens, params) as subject:
        result = causal(subject, tokens, seed=3)["future"]
    assert len(set(result["cuts"])) == 4
    changed, intact = 0, 0
    for cut in result["cuts"]:
        assert 8 <= cut <= 16
        past = (np.arange(24) > 0) & (np.arange(24) < cut)

        def without_past(states, s, past=past):
            return np.where(past[:, None], states[s], states[s + 1])

        of_cut = _changes(params, cfg, tokens, without_past, slice(cut, None))
        changed, intact = changed + of_cut[0], intact + of_cut[1]
    np.testing.assert_allclose(result["matrix"], changed / intact, rtol=1e-8)


def test_a_block_that_adds_nothing_changes_nothing():
    tokens = subjects.tokens(tiny_configs.MODEL)
    with subjects.analysed(
        tiny_configs.MODEL,
        tokens,
        subjects.without_output(tiny_configs.init(tiny_configs.MODEL), 1),
    ) as subject:
        result = causal(subject, tokens, seed=0)
    np.testing.assert_array_equal(np.array(result["matrix"])[1], 0)  # skipping it
    assert np.array(result["matrix"])[0, 1] == 0  # and nothing changes what is 0
    assert result["matrix"][0][2] > 0


def test_a_single_block_has_no_score():
    cfg = dataclasses.replace(tiny_configs.MODEL, n_layers=1)
    tokens = subjects.tokens(cfg)
    with subjects.analysed(cfg, tokens) as subject:
        assert causal(subject, tokens, seed=0)["score"] is None
