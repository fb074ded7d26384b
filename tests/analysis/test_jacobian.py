"""Averaged Jacobians, against differentiation of the whole map from sequences to sequences."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsecod_jax.analysis import jacobian, network
from tests.support import subjects, tiny_configs


def _full(subject, number):
    """dY[b, s, i] / dX[b, t, j] of one block, as [B, S, I, T, J]."""
    rows = next(subject.rows(subject.tokens_NT))
    states = network.states(subject.net, subject.params, rows.tokens, rows.segments)

    def one(x_TD):
        return network.BlockAt(subject.net, subject.params, number, number).output(
            x_TD[None], None
        )[0]

    @jax.jit
    def every_output(x_TD):
        _, pull = jax.vjp(one, x_TD)
        return jax.lax.map(
            lambda cotangent_TD: pull(cotangent_TD)[0],
            jnp.eye(x_TD.size).reshape(-1, *x_TD.shape),
        )

    return np.array(
        [
            np.asarray(every_output(x_TD)).reshape(*x_TD.shape, *x_TD.shape)
            for x_TD in states[number]
        ]
    )


def _describe(mean_IJ):
    width = len(mean_IJ)
    off = mean_IJ - np.diag(np.diag(mean_IJ))
    return {
        "distance_from_identity": np.sqrt(np.sum((mean_IJ - np.eye(width)) ** 2))
        / width,
        "relative_distance": np.sqrt(np.sum((mean_IJ - np.eye(width)) ** 2) / width),
        "off_diagonal": np.sqrt(np.sum(off**2) / (width**2 - width)),
        "diagonal_mean": np.trace(mean_IJ) / width,
        "diagonal_std": np.std(np.diag(mean_IJ), ddof=1),
        "spectral_norm": np.linalg.svd(mean_IJ)[1][0],
    }


def test_exact_equals_full_differentiation(trained):
    cfg, params = trained
    tokens = subjects.tokens(cfg, sequences=2, length=6)
    with subjects.analysed(cfg, tokens, params) as subject:
        result = jacobian.jacobian(subject, tokens, seed=0)
        for number in range(cfg.n_layers):
            full_BSITJ = _full(subject, number)
            tokens_in_all = tokens.size
            expected = _describe(full_BSITJ.sum(axis=(0, 1, 3)) / tokens_in_all)
            same_position = _describe(
                np.einsum("bsisj->ij", full_BSITJ) / tokens_in_all
            )
            for name, value in expected.items():
                assert result[name][number] == pytest.approx(value, rel=1e-8), name
                assert result["same_position"][name][number] == pytest.approx(
                    same_position[name], rel=1e-8
                ), name
    assert result["method"] == result["same_position"]["method"] == "exact"


def test_the_estimate_agrees_and_says_how_well(trained):
    cfg, params = trained
    tokens = subjects.tokens(cfg, sequences=3)
    with subjects.analysed(cfg, tokens, params) as subject:
        exact = np.array(jacobian.exact(subject, tokens)["distance_from_identity"])
        result = jacobian.estimate(subject, tokens, seed=0)
    estimated, error = (
        np.array(result["distance_from_identity"]),
        np.array(result["standard_error"]),
    )
    assert np.all(error <= 0.03 * estimated)
    assert np.all(np.abs(estimated - exact) < 3 * error)
    assert result["probes"] < jacobian.MOST_PROBES
    np.testing.assert_allclose(
        result["relative_distance"], estimated * np.sqrt(cfg.d_model)
    )


def test_wide_models_are_estimated(monkeypatch):
    monkeypatch.setattr(jacobian, "EXACT_WIDTH", 16)
    monkeypatch.setattr(jacobian, "MOST_PROBES", 16)
    tokens = subjects.tokens(tiny_configs.MODEL)
    with subjects.analysed(tiny_configs.MODEL, tokens) as subject:
        result = jacobian.jacobian(subject, tokens, seed=0)
    assert (result["method"], result["probes"], result["same_position"]["method"]) == (
        "estimate",
        16,
        "estimate",
    )


def test_a_block_that_adds_nothing_is_the_identity():
    tokens = subjects.tokens(tiny_configs.MODEL)
    with subjects.analysed(
        tiny_configs.MODEL,
        tokens,
        subjects.without_output(tiny_configs.init(tiny_configs.MODEL), 1),
    ) as subject:
        result = jacobian.jacobian(subject, tokens, seed=0)
    assert result["distance_from_identity"][1] == pytest.approx(0, abs=1e-14)
    assert result["distance_from_identity"][0] > 0.01


def test_rows_that_fill_up_a_batch_do_not_count():
    """Five sequences on four devices; and attention stays within documents."""
    cfg = dataclasses.replace(tiny_configs.MODEL, document_masking=True)
    params, tokens = tiny_configs.init(cfg), subjects.tokens(cfg)
    tokens[:, 5] = 7
    result = []
    for mesh in ((1, 1, 1, 1), (2, 2, 1, 1)):
        with subjects.analysed(cfg, tokens, params, mesh=mesh, eos_id=7) as subject:
            result.append(jacobian.jacobian(subject, tokens, seed=0))
    for name in ("distance_from_identity", "spectral_norm"):
        np.testing.assert_allclose(result[0][name], result[1][name], rtol=1e-10)
        np.testing.assert_allclose(
            result[0]["same_position"][name],
            result[1]["same_position"][name],
            rtol=1e-10,
        )
