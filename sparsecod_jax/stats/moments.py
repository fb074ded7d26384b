"""What shape has an activation? Higher moments and outliers, for the program that runs every k steps.

Definitions: the released code of arXiv 2603.15389 (its `compute_higher_order_moments` and `detect_outliers`), vectorised. Statistics of
all elements are those of one global microbatch and are averaged over microbatches. Order statistics come from at most SORTED_TOKENS
tokens, drawn at random but the same at every step.

B batch, T positions, D width, N tokens, M elements.
"""

import jax
import jax.numpy as jnp
import numpy as np

OUTLIER_ZSCORE = 3.0
OUTLIER_QUANTILE = 0.01
TOP_K = 10
SORTED_TOKENS = 1024


def moments(z_BTD: jax.Array) -> dict[str, jax.Array]:
    """Scalars of one tap: flat moments, order statistics, per-channel and per-feature moments, outliers."""
    z_ND = z_BTD.reshape(-1, z_BTD.shape[-1])
    z_ND = z_ND.astype(jnp.promote_types(z_ND.dtype, jnp.float32))
    flat = flat_moments(z_ND)
    shape = _spread("channel", *channel_moments(z_ND)) | _spread(
        "feature", *feature_moments(z_ND)
    )
    return (
        flat
        | order_statistics(z_ND)
        | shape
        | outliers(z_ND, flat["mean"], flat["std"])
    )


def _spread(
    kind: str, skewness: jax.Array, kurtosis: jax.Array
) -> dict[str, jax.Array]:
    """Mean and population standard deviation of per-token or per-feature moments."""
    return {
        f"{kind}_avg_skewness": skewness.mean(),
        f"{kind}_avg_kurtosis": kurtosis.mean(),
        f"{kind}_avg_excess_kurtosis": kurtosis.mean() - 3,
        f"{kind}_std_skewness": skewness.std(),
        f"{kind}_std_kurtosis": kurtosis.std(),
    }


def _standard_moments(
    z: jax.Array, axis
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Mean, unbiased standard deviation, skewness and kurtosis along `axis`; 0 and 3 where nothing varies."""
    mean, std = z.mean(axis, keepdims=True), z.std(axis, ddof=1, keepdims=True)
    unit = (z - mean) / jnp.where(
        std > 0, std, 1
    )  # first, as the fourth power of a small std is 0
    mean, std = mean.squeeze(axis), std.squeeze(axis)
    square = jnp.square(unit)
    return (
        mean,
        std,
        (square * unit).mean(axis),
        jnp.where(std > 0, jnp.square(square).mean(axis), 3),
    )


def flat_moments(z_ND: jax.Array) -> dict[str, jax.Array]:
    """Moments of all elements together; cv is std / |mean|, 0 where the mean is below 1e-8."""
    mean, std, skewness, kurtosis = _standard_moments(z_ND, axis=(0, 1))
    size = jnp.abs(mean)
    cv = jnp.where(size > 1e-8, std / jnp.where(size > 1e-8, size, 1), 0)
    return {
        "mean": mean,
        "std": std,
        "skewness": skewness,
        "kurtosis": kurtosis,
        "excess_kurtosis": kurtosis - 3,
        "cv": cv,
    }


def order_statistics(z_ND: jax.Array) -> dict[str, jax.Array]:
    """Lower median, unscaled median absolute deviation, quartiles and quantile outliers, from sampled tokens when there are many."""
    tokens = np.random.default_rng(0).permutation(len(z_ND))[:SORTED_TOKENS]
    z_M = jnp.sort(z_ND[tokens].reshape(-1))
    median = z_M[(z_M.size - 1) // 2]
    deviation_M = jnp.sort(jnp.abs(z_M - median))
    q25, q75, low, high = jnp.quantile(
        z_M, jnp.array([0.25, 0.75, OUTLIER_QUANTILE, 1 - OUTLIER_QUANTILE])
    )
    return {
        "median": median,
        "mad": deviation_M[(z_M.size - 1) // 2],
        "q25": q25,
        "q75": q75,
        "iqr": q75 - q25,
        "outlier_ratio_quantile": ((z_M < low) | (z_M > high)).mean(dtype=z_M.dtype),
    }


def channel_moments(z_ND: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Skewness and kurtosis over the channels of each token, [N] each."""
    return _standard_moments(z_ND, axis=1)[2:]


def feature_moments(z_ND: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Skewness and kurtosis of each channel over tokens, [D] each."""
    return _standard_moments(z_ND, axis=0)[2:]


def outliers(z_ND: jax.Array, mean: jax.Array, std: jax.Array) -> dict[str, jax.Array]:
    """Elements further than OUTLIER_ZSCORE deviations out, and the share of the L2 norm in the TOP_K largest."""
    distance_ND = jnp.abs(z_ND - mean)
    far_ND = (distance_ND > OUTLIER_ZSCORE * std).astype(z_ND.dtype)
    return {
        "outlier_count_zscore": far_ND.sum(),
        "outlier_ratio_zscore": far_ND.mean(),
        "top_magnitude_ratio": top_magnitude_ratio(z_ND, TOP_K),
    }


def top_magnitude_ratio(z_ND: jax.Array, k: int) -> jax.Array:
    """L2 norm of the k largest magnitudes over that of all elements; 0 when all are 0."""
    columns = jax.lax.top_k(jnp.abs(z_ND), min(k, z_ND.shape[1]))[0]
    largest = jax.lax.top_k(columns.reshape(-1), min(k, columns.size))[0]
    total = jnp.linalg.norm(z_ND)
    return jnp.linalg.norm(largest) / jnp.where(total > 0, total, 1)
