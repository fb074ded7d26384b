"""What shape has an activation?

Moments: higher moments, order statistics and outliers, for the program that runs every k
steps. Definitions: the released code of arXiv 2603.15389 (its `compute_higher_order_moments`
and `detect_outliers`), vectorised. Statistics of all elements are those of one global
microbatch and are averaged over microbatches. Order statistics come from at most
SORTED_TOKENS tokens, drawn at random but the same at every step.

B batch, T positions, D width, N tokens, M elements.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparsecod_jax.tree import at_least_float32

OUTLIER_ZSCORE = 3.0  # standard deviations from the mean
OUTLIER_QUANTILE = 0.01  # at either end
TOP_K = 10  # elements whose share of the L2 norm is measured
SORTED_TOKENS = 1024  # at most, as sorting is what takes the time


def moments(z_BTD: jax.Array) -> dict[str, jax.Array]:
    """Scalars of one activation.

    Moments of all elements, order statistics, moments per token (`channel_...`) and per
    channel (`feature_...`), and outliers.
    """
    z_ND = at_least_float32(z_BTD.reshape(-1, z_BTD.shape[-1]))
    flat = flat_moments(z_ND)
    channel = _spread("channel", *channel_moments(z_ND))
    feature = _spread("feature", *feature_moments(z_ND))
    order = order_statistics(z_ND)
    far = outliers(z_ND, flat["mean"], flat["std"])
    return flat | order | channel | feature | far


def _spread(
    kind: str, skewness: jax.Array, kurtosis: jax.Array
) -> dict[str, jax.Array]:
    """Mean and population standard deviation of moments.

    Args:
      kind: `channel` for moments per token, `feature` for moments per channel, as the
        paper's code names them.
    """
    return {
        f"{kind}_avg_skewness": skewness.mean(),
        f"{kind}_avg_kurtosis": kurtosis.mean(),
        f"{kind}_avg_excess_kurtosis": kurtosis.mean() - 3,
        f"{kind}_std_skewness": skewness.std(),
        f"{kind}_std_kurtosis": kurtosis.std(),
    }


class _Moments(NamedTuple):
    mean: jax.Array
    std: jax.Array
    skewness: jax.Array
    kurtosis: jax.Array


def _standard_moments(z: jax.Array, axis) -> _Moments:
    """Moments along `axis`; skewness 0 and kurtosis 3 where nothing varies.

    The standard deviation is unbiased. With u = (z - mean) / std the skewness is the mean of
    u^3 and the kurtosis that of u^4, 3 for a normal distribution.
    """
    mean = z.mean(axis, keepdims=True)
    std = z.std(axis, ddof=1, keepdims=True)
    # Divided before it is raised, as the fourth power of a small deviation is 0 in float32.
    unit = (z - mean) / jnp.where(std > 0, std, 1)
    mean = mean.squeeze(axis)
    std = std.squeeze(axis)
    square = jnp.square(unit)
    skewness = (square * unit).mean(axis)
    kurtosis = jnp.where(std > 0, jnp.square(square).mean(axis), 3)
    return _Moments(mean, std, skewness, kurtosis)


def flat_moments(z_ND: jax.Array) -> dict[str, jax.Array]:
    """Moments of all elements together.

    Returns:
      mean, std: the standard deviation is unbiased.
      skewness, kurtosis: of the elements in units of std.
      excess_kurtosis: above the 3 of a normal distribution.
      cv: coefficient of variation std / |mean|, 0 where |mean| is at most 1e-8.
    """
    mean, std, skewness, kurtosis = _standard_moments(z_ND, axis=(0, 1))
    # Where the mean is about 0, std / |mean| tells nothing. The inner `where` keeps divisions
    # by 0 out of the values that the outer one does not select.
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
    """What sorting the elements tells, from sampled tokens where there are many.

    Returns:
      median: the lower one of the two in the middle.
      mad: median absolute deviation from the median, unscaled.
      q25, q75, iqr: quartiles, and the range between them.
      outlier_ratio_quantile: share of elements in the OUTLIER_QUANTILE tails; where many
        are equal, fewer are.
    """
    # Drawn by numpy while the step is traced, so that the sample is a constant of the program.
    tokens = np.random.default_rng(0).permutation(len(z_ND))[:SORTED_TOKENS]
    z_M = jnp.sort(z_ND[tokens].reshape(-1))
    middle = (z_M.size - 1) // 2
    median = z_M[middle]
    deviation_M = jnp.sort(jnp.abs(z_M - median))
    quantiles = jnp.array([0.25, 0.75, OUTLIER_QUANTILE, 1 - OUTLIER_QUANTILE])
    q25, q75, low, high = jnp.quantile(z_M, quantiles)
    return {
        "median": median,
        "mad": deviation_M[middle],
        "q25": q25,
        "q75": q75,
        "iqr": q75 - q25,
        "outlier_ratio_quantile": ((z_M < low) | (z_M > high)).mean(dtype=z_M.dtype),
    }


def channel_moments(z_ND: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Skewness and kurtosis over the channels of each token, [N] each."""
    per_token = _standard_moments(z_ND, axis=1)
    return per_token.skewness, per_token.kurtosis


def feature_moments(z_ND: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Skewness and kurtosis of each channel over tokens, [D] each."""
    per_channel = _standard_moments(z_ND, axis=0)
    return per_channel.skewness, per_channel.kurtosis


def outliers(z_ND: jax.Array, mean: jax.Array, std: jax.Array) -> dict[str, jax.Array]:
    """How far out elements lie, given the mean and standard deviation of all.

    Returns:
      outlier_count_zscore: elements further than OUTLIER_ZSCORE from the mean.
      outlier_ratio_zscore: their share of all elements.
      top_magnitude_ratio: share of the L2 norm in the TOP_K largest elements.
    """
    distance_ND = jnp.abs(z_ND - mean)
    far_ND = (distance_ND > OUTLIER_ZSCORE * std).astype(z_ND.dtype)
    return {
        "outlier_count_zscore": far_ND.sum(),
        "outlier_ratio_zscore": far_ND.mean(),
        "top_magnitude_ratio": top_magnitude_ratio(z_ND, TOP_K),
    }


def top_magnitude_ratio(z_ND: jax.Array, k: int) -> jax.Array:
    """L2 norm of the k largest magnitudes over that of all elements; 0 when all are 0."""
    # The k largest of all are among the k largest of each token, which are found side by side.
    columns_NK, _ = jax.lax.top_k(jnp.abs(z_ND), min(k, z_ND.shape[1]))
    largest_K, _ = jax.lax.top_k(columns_NK.reshape(-1), min(k, columns_NK.size))
    total = jnp.linalg.norm(z_ND)
    return jnp.linalg.norm(largest_K) / jnp.where(total > 0, total, 1)
