"""Higher moments and outliers against the golden values of the paper's code, and where
nothing or too much is there to measure.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsecod_jax.stats import block, moments

INDEX = np.arange(48)
Z = (
    (np.sin(0.7 * INDEX) + 0.1 * (INDEX % 5) + 4 * (INDEX == 17))
    .reshape(2, 3, 8)
    .astype(np.float32)
)
GOLDEN = {
    "mean": 0.3135258,
    "std": 0.8653993,
    "skewness": 0.9043867,
    "kurtosis": 5.0457436,
    "excess_kurtosis": 2.0457436,
    "cv": 2.7602175,
    "median": 0.2709058,
    "mad": 0.6748410,
    "q25": -0.3849792,
    "q75": 0.9548010,
    "iqr": 1.3397802,
    "channel_avg_skewness": 0.1494207,
    "channel_avg_kurtosis": 1.6183733,
    "channel_avg_excess_kurtosis": -1.3816267,
    "channel_std_skewness": 0.4375508,
    "channel_std_kurtosis": 0.6613233,
    "outlier_count_zscore": 1,
    "outlier_ratio_zscore": 0.0208333,
}
FEATURE_SKEWNESS = [
    -0.148913,
    0.935591,
    0.261307,
    -0.257832,
    -0.544895,
    -0.273537,
    -0.512806,
    0.028695,
]
FEATURE_KURTOSIS = [
    1.52916,
    2.23394,
    1.074883,
    0.929599,
    1.278484,
    1.347854,
    1.654691,
    0.995161,
]


def _measure(z):
    """`moments` compiled afresh, so that patched constants count."""
    return {
        name: float(value)
        for name, value in jax.jit(lambda z: moments.moments(z))(z).items()
    }


@pytest.fixture(scope="module")
def measured():
    return _measure(Z)


@pytest.mark.parametrize(("name", "expected"), GOLDEN.items(), ids=GOLDEN)
def test_golden_values(measured, name, expected):
    assert measured[name] == pytest.approx(expected, abs=1e-5)


def test_golden_variances(measured):
    assert measured["std"] ** 2 == pytest.approx(0.7489160, abs=1e-5)
    assert float(block.variance(Z)) == pytest.approx(0.7749053, abs=1e-5)


def test_golden_moments_of_each_feature(measured):
    skewness, kurtosis = jax.jit(moments.feature_moments)(Z.reshape(-1, 8))
    np.testing.assert_allclose(skewness, FEATURE_SKEWNESS, atol=1e-5)
    np.testing.assert_allclose(kurtosis, FEATURE_KURTOSIS, atol=1e-5)
    assert measured["feature_avg_skewness"] == pytest.approx(
        np.mean(FEATURE_SKEWNESS), abs=1e-5
    )
    assert measured["feature_std_skewness"] == pytest.approx(
        np.std(FEATURE_SKEWNESS), abs=1e-5
    )
    assert measured["feature_avg_kurtosis"] == pytest.approx(
        np.mean(FEATURE_KURTOSIS), abs=1e-5
    )
    assert measured["feature_avg_excess_kurtosis"] == pytest.approx(
        np.mean(FEATURE_KURTOSIS) - 3, abs=1e-5
    )
    assert measured["feature_std_kurtosis"] == pytest.approx(
        np.std(FEATURE_KURTOSIS), abs=1e-5
    )


def test_golden_quantile_and_top_k_outliers(monkeypatch):
    monkeypatch.setattr(moments, "OUTLIER_QUANTILE", 0.05)
    monkeypatch.setattr(moments, "TOP_K", 3)
    measured = _measure(Z)
    assert measured["outlier_ratio_quantile"] * 48 == pytest.approx(6, abs=1e-4)
    assert measured["top_magnitude_ratio"] == pytest.approx(0.6418662, abs=1e-5)


@pytest.mark.parametrize("k", [10, 48, 1000])
def test_top_k_larger_than_a_token(k):
    """k above the 8 channels of a token, up to all elements and beyond."""
    largest = np.sort(np.abs(Z.reshape(-1)))[::-1][:k]
    expected = np.linalg.norm(largest) / np.linalg.norm(Z)
    assert float(
        moments.top_magnitude_ratio(jnp.asarray(Z.reshape(-1, 8)), k)
    ) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("value", [0.0, 2.0, -0.5])
def test_a_constant_has_no_shape(value):
    measured = _measure(np.full((2, 3, 8), value, np.float32))
    assert all(np.isfinite(list(measured.values())))
    for kind in ("", "channel_avg_", "feature_avg_"):
        assert measured[f"{kind}skewness"] == 0
        assert measured[f"{kind}kurtosis"] == pytest.approx(3)
        assert measured[f"{kind}excess_kurtosis"] == pytest.approx(0, abs=1e-6)
    assert (
        measured["mean"],
        measured["median"],
        measured["std"],
        measured["mad"],
        measured["cv"],
    ) == (value, value, 0, 0, 0)
    assert (measured["outlier_count_zscore"], measured["outlier_ratio_quantile"]) == (
        0,
        0,
    )


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_shape_does_not_depend_on_scale(scale):
    """The fourth power of such numbers is outside float32."""
    measured = _measure(scale * Z)
    for name in GOLDEN:
        if "skewness" in name or "kurtosis" in name or "outlier" in name:
            assert measured[name] == pytest.approx(GOLDEN[name], abs=1e-4), name


def test_few_tokens_stand_for_many(monkeypatch):
    """The level drifts along the tokens, so that a sample from one end would be far
    off, and first positions are massive.
    """
    rng = np.random.default_rng(0)
    z = (
        rng.normal(size=(64, 128, 8)) + np.linspace(0, 6, 8192).reshape(64, 128, 1)
    ).astype(np.float32)
    z[:, 0] *= 100
    monkeypatch.setattr(moments, "SORTED_TOKENS", 1024)
    sampled = _measure(z)
    median = np.median(z)
    expected = {
        "median": median,
        "mad": np.median(np.abs(z - median)),
        "q25": np.quantile(z, 0.25),
        "q75": np.quantile(z, 0.75),
        "iqr": np.quantile(z, 0.75) - np.quantile(z, 0.25),
    }
    for name, value in expected.items():
        assert sampled[name] == pytest.approx(value, abs=0.2), name
    assert (
        abs(sampled["median"] - np.sort(z, axis=None)[(z.size - 1) // 2]) > 1e-6
    )  # it was a sample
    assert sampled["outlier_ratio_quantile"] == pytest.approx(0.02, abs=0.003)
    assert sampled["mean"] == pytest.approx(
        z.mean(dtype=np.float64), rel=1e-4
    )  # moments take all elements


def test_bfloat16_is_measured_in_float32_and_float64_stays():
    rounded = jnp.asarray(Z, jnp.bfloat16)
    measured, expected = (
        jax.jit(moments.moments)(rounded),
        _measure(np.asarray(rounded, np.float32)),
    )
    assert {value.dtype for value in measured.values()} == {jnp.dtype("float32")}
    assert {name: float(value) for name, value in measured.items()} == pytest.approx(
        expected, rel=1e-5, abs=1e-6
    )
    with jax.enable_x64():
        exact = jax.jit(moments.moments)(jnp.asarray(Z, jnp.float64))
        assert {value.dtype for value in exact.values()} == {jnp.dtype("float64")}
