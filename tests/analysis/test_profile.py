"""Statistics by depth, against numpy."""

import numpy as np

from sparsecod_jax.analysis.profile import profile, residual_variance
from tests.support import numpy_model, subjects


def _softmax(logits):
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def _cosine(x, y):
    return (
        (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)
    ).mean()


def test_equals_numpy(trained):
    cfg, params = trained
    tokens = subjects.tokens(cfg)
    with subjects.analysed(cfg, tokens, params) as subject:
        result = profile(subject, tokens)
        variance = residual_variance(subject, tokens)
    states = numpy_model.states(params, tokens, cfg)
    final = numpy_model.decode(params, states[-1], cfg)
    best = np.argsort(-final, -1)[..., :5]
    for layer in range(cfg.n_layers):
        x, y = states[layer : layer + 2]
        attention = numpy_model.attention_branch(params, layer, x, cfg)
        ffn = y - x - attention
        decoded = numpy_model.decode(params, y, cfg)
        here = np.argsort(-decoded, -1)[..., :5]
        divergence = (
            (_softmax(decoded) * (np.log(_softmax(decoded)) - np.log(_softmax(final))))
            .sum(-1)
            .mean()
        )
        overlap = np.mean(
            [
                len(set(h) & set(b)) / 5
                for h, b in zip(here.reshape(-1, 5), best.reshape(-1, 5), strict=True)
            ]
        )
        expected = {
            "variance/residual": y.var(-1, ddof=1).mean(),
            "variance/attention": attention.var(-1, ddof=1).mean(),
            "variance/ffn": ffn.var(-1, ddof=1).mean(),
            "norm/residual": np.linalg.norm(y, axis=-1).mean(),
            "cosine/update": _cosine(x, y - x),
            "block_influence": 1 - _cosine(x, y),
            "relative_update/block": (
                np.linalg.norm(y - x, axis=-1) / np.linalg.norm(x, axis=-1)
            ).mean(),
            "relative_update/attention": (
                np.linalg.norm(attention, axis=-1) / np.linalg.norm(x, axis=-1)
            ).mean(),
            "relative_update/ffn": (
                np.linalg.norm(ffn, axis=-1) / np.linalg.norm(x + attention, axis=-1)
            ).mean(),
            "lens_divergence": divergence,
            "lens_overlap": overlap,
            "moments/residual/kurtosis": np.mean(
                [((row - row.mean()) ** 4).mean() / row.std() ** 4 for row in y]
            ),
            "moments/residual/top_magnitude_ratio": np.mean(
                [
                    np.sqrt(np.sort(row.ravel() ** 2)[-10:].sum() / (row**2).sum())
                    for row in y
                ]
            ),
        }
        for name, value in expected.items():
            np.testing.assert_allclose(
                result[name][layer],
                value,
                rtol=1e-2 if "kurtosis" in name else 1e-6,
                atol=1e-10,
                err_msg=name,
            )
    np.testing.assert_allclose(variance, result["variance/residual"], rtol=1e-12)


def test_a_block_that_adds_nothing_has_no_influence(trained):
    cfg, params = trained
    tokens = subjects.tokens(cfg)
    with subjects.analysed(cfg, tokens, subjects.without_output(params, 2)) as subject:
        result = profile(subject, tokens)
    np.testing.assert_allclose(result["block_influence"][2], 0, atol=1e-12)
    assert result["relative_update/block"][2] == 0
    np.testing.assert_allclose(
        result["lens_divergence"][1], 0, atol=1e-12
    )  # all that is to be said is said before it
    np.testing.assert_allclose(result["lens_overlap"][1], 1)
