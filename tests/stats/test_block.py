"""What every step measures, against plain numpy, and that measuring changes no gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsecod_jax.stats import block

RNG = np.random.default_rng(0)
X, ATTENTION, FFN = (
    RNG.normal(size=(3, 5, 16)) * RNG.uniform(0.2, 3, (3, 5, 1)) + 0.3 for _ in range(3)
)
Y = X + ATTENTION + FFN


def _cosine(x, y):
    dots = (x * (y - x)).sum(-1)
    return (dots / np.linalg.norm(x, axis=-1) / np.linalg.norm(y - x, axis=-1)).mean()


def _expected(x, attention, ffn, y):
    return {
        "variance/residual": np.var(y, axis=-1, ddof=1).mean(),
        "variance/attention": np.var(attention, axis=-1, ddof=1).mean(),
        "variance/ffn": np.var(ffn, axis=-1, ddof=1).mean(),
        "norm/attention": np.sqrt((attention**2).sum(-1)).mean(),
        "norm/ffn": np.sqrt((ffn**2).sum(-1)).mean(),
        "cosine/update": _cosine(x, y),
    }


def _measure(*taps_BTD, with_moments=False):
    return jax.jit(
        lambda *taps_BTD: block.block_stats(*taps_BTD, with_moments=with_moments)
    )(*taps_BTD)


def test_float32_equals_numpy():
    measured = _measure(*(tap.astype(np.float32) for tap in (X, ATTENTION, FFN, Y)))
    assert {name: float(value) for name, value in measured.items()} == pytest.approx(
        _expected(X, ATTENTION, FFN, Y), rel=1e-5
    )


def test_bfloat16_is_measured_in_float32():
    """The rounded input is exact in float64, so that only the arithmetic can differ."""
    rounded = [jnp.asarray(tap, jnp.bfloat16) for tap in (X, ATTENTION, FFN, Y)]
    measured = _measure(*rounded)
    assert {value.dtype for value in measured.values()} == {jnp.dtype("float32")}
    expected = _expected(*(np.asarray(tap, np.float64) for tap in rounded))
    assert {name: float(value) for name, value in measured.items()} == pytest.approx(
        expected, rel=1e-5
    )


def test_float64_stays():
    with jax.enable_x64():
        measured = _measure(X, ATTENTION, FFN, Y)
        assert {value.dtype for value in measured.values()} == {jnp.dtype("float64")}
        assert {
            name: float(value) for name, value in measured.items()
        } == pytest.approx(_expected(X, ATTENTION, FFN, Y), rel=1e-12)


def test_a_token_far_from_zero():
    """Ten deviations off, as a large bias would put it; and one without any variance,
    which rounding must not make negative.
    """
    far = RNG.normal(size=(2, 3, 512)) + 10
    measured = jax.jit(block.token_variance)(far.astype(np.float32))
    np.testing.assert_allclose(measured, np.var(far, axis=-1, ddof=1), rtol=1e-4)
    constants = RNG.uniform(size=(1, 64, 1)).astype(np.float32)
    assert (
        np.asarray(
            jax.jit(block.token_variance)(np.broadcast_to(constants, (1, 64, 511)))
        )
        >= 0
    ).all()


def test_no_gradient_flows_through_the_statistics():
    def loss(taps_BTD):
        stats = block.block_stats(*taps_BTD, with_moments=True)
        return sum(jnp.sum(tap**2) for tap in taps_BTD) + sum(
            jnp.sum(value) for value in stats.values()
        )

    inputs = [tap.astype(np.float32) for tap in (X, ATTENTION, FFN, Y)]
    for gradient, tap in zip(jax.jit(jax.grad(loss))(inputs), inputs, strict=True):
        np.testing.assert_allclose(gradient, 2 * tap, rtol=1e-6)


def test_token_median_and_mean_without_the_first_position():
    """The first position is a hundred times larger, as an attention sink is."""
    sink = Y.copy()
    sink[:, 0] *= 100
    measured = _measure(
        *(tap.astype(np.float32) for tap in (X, ATTENTION, FFN, sink)),
        with_moments=True,
    )
    variances = np.var(sink, axis=-1, ddof=1)
    assert float(measured["variance_median/residual"]) == pytest.approx(
        np.median(variances), rel=1e-5
    )
    assert float(measured["variance_without_first/residual"]) == pytest.approx(
        variances[:, 1:].mean(), rel=1e-5
    )
    assert float(measured["variance_without_first/residual"]) < 0.01 * float(
        measured["variance/residual"]
    )
    for name, tap in (("attention", ATTENTION), ("ffn", FFN)):
        variances = np.var(tap, axis=-1, ddof=1)
        assert float(measured[f"variance_median/{name}"]) == pytest.approx(
            np.median(variances), rel=1e-5
        )
        assert float(measured[f"variance_without_first/{name}"]) == pytest.approx(
            variances[:, 1:].mean(), rel=1e-5
        )
        assert float(measured[f"moments/{name}/mean"]) == pytest.approx(
            tap.mean(), rel=1e-5
        )


def test_cosine_of_known_directions():
    x = np.array([[[3.0, 0.0], [0.0, 2.0]]], np.float32)
    cosine = jax.jit(block.update_cosine)
    assert float(cosine(x, 2 * x)) == pytest.approx(1)
    assert float(cosine(x, 0.5 * x)) == pytest.approx(-1)
    assert float(cosine(x, x + x[..., ::-1])) == pytest.approx(0)


def test_a_zero_update_has_cosine_zero():
    x = X.astype(np.float32)
    cosine = jax.jit(block.update_cosine)
    assert float(cosine(x, x)) == 0
    some = x.copy()
    some[0] *= 2  # 5 of 15 tokens repeat what is there
    assert float(cosine(x, some)) == pytest.approx(1 / 3)
    assert float(cosine(0 * x, x)) == 0  # an empty stream has no direction either


def test_layer_norms_are_over_all_tensors_of_a_block():
    blocks = {
        "ffn": {"up": RNG.normal(size=(4, 3, 5)), "down": RNG.normal(size=(4, 2))},
        "gain": RNG.normal(size=(4, 7, 2, 2)),
    }
    expected = [
        np.sqrt(sum((leaf[layer] ** 2).sum() for leaf in jax.tree.leaves(blocks)))
        for layer in range(4)
    ]
    measured = jax.jit(block.layer_norms)(
        jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), blocks)
    )
    np.testing.assert_allclose(measured, expected, rtol=1e-6)
    rounded = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), blocks)
    assert jax.jit(block.layer_norms)(rounded).dtype == jnp.float32
