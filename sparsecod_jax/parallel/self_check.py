"""Does this compiler compute right?

Self-check: one small gradient is compared with numpy before anything is trained or scored.

P cotangents, T positions, D width.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from sparsecod_jax.errors import ConfigError
from sparsecod_jax.parallel.xla_flags import OWN_REDUCTIONS

P, T, D = 8, 512, 64  # the smallest sizes at which jaxlib 0.10.2 was seen to be wrong
TOLERANCE = 1e-4  # relative; float32 agrees to 1e-6, the fault is of 1e-2


@functools.cache
def check_compiler() -> None:
    """Refuses a compiler whose gradients are wrong; checks once per process.

    Raises:
      ConfigError: the gradient of a norm differs from that of its formula.
    """
    rng = np.random.default_rng(0)
    x_TD = rng.standard_normal((T, D), np.float32)
    cotangents_PD = rng.standard_normal((P, D), np.float32)
    found_PD = np.asarray(_pulled_back(x_TD, cotangents_PD), np.float64)
    expected_PD = _by_formula(x_TD.astype(np.float64), cotangents_PD.astype(np.float64))
    error = np.linalg.norm(found_PD - expected_PD) / np.linalg.norm(expected_PD)
    if not error <= TOLERANCE:
        raise ConfigError(
            f"this compiler returns wrong gradients (jax {jax.__version__},"
            f" that of a norm is off by {error:.1e}):"
            f" set XLA_FLAGS={OWN_REDUCTIONS} before jax starts, or use another jax"
        )


@jax.jit
def _pulled_back(x_TD, cotangents_PD):
    """The gradient of each cotangent times the sum over positions of the normed input, [P, D]."""
    _, pull_back = jax.vjp(_norm, x_TD)

    def one(cotangent_D):
        return pull_back(jnp.broadcast_to(cotangent_D[None], x_TD.shape))[0].sum(axis=0)

    return jax.vmap(one)(cotangents_PD)


def _norm(x_TD):
    return x_TD * jax.lax.rsqrt(jnp.square(x_TD).mean(axis=-1, keepdims=True))


def _by_formula(x_TD: np.ndarray, cotangents_PD: np.ndarray) -> np.ndarray:
    """For x / rms(x): (c - x (c . x) / (D rms^2)) / rms, summed over positions."""
    rms_T = np.sqrt(np.square(x_TD).mean(axis=-1))
    along_PT = cotangents_PD @ x_TD.T / (D * rms_T**3)
    return (1 / rms_T).sum() * cotangents_PD - along_PT @ x_TD
