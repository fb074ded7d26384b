"""Which layers is a block made of, attention aside?

Layers: RMSNorm and SwiGLU, and the parameters that every layer makes.

B batch, T positions, D width, F hidden width of the FFN.
"""

from typing import cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from sparsecod_jax.config import Model
from sparsecod_jax.parallel.sharding import constrain
from sparsecod_jax.tree import at_least_float32

# The name of a matrix product inside a kernel, by which a remat policy knows it.
PRODUCT = "product"


def weight(
    module: nn.Module,
    name: str,
    shape: tuple[int, ...],
    axes: tuple[str, ...],
    std: float,
) -> jax.Array:
    """A float32 parameter drawn from N(0, std^2), with its logical axes."""
    return _parameter(module, name, shape, axes, nn.initializers.normal(std))


def _parameter(module: nn.Module, name: str, shape, axes, init) -> jax.Array:
    partitioned = nn.with_logical_partitioning(init, axes)
    return cast(jax.Array, module.param(name, partitioned, shape, jnp.float32))


class RMSNorm(nn.Module):
    """Root-mean-square norm with a gain: x / sqrt(mean(x^2) + eps) * gain.

    Normalised in at least float32, then cast, then multiplied by the gain.
    """

    cfg: Model

    @nn.compact
    def __call__(self, x_BTD):
        """The normed input, [B, T, D], in the compute dtype."""
        shape = (x_BTD.shape[-1],)
        gain_D = _parameter(self, "gain", shape, ("norm",), nn.initializers.ones)
        wide_BTD = at_least_float32(x_BTD)
        square_BT1 = jnp.mean(jnp.square(wide_BTD), axis=-1, keepdims=True)
        inverse_BT1 = jax.lax.rsqrt(square_BT1 + self.cfg.norm_eps)
        dtype = self.cfg.compute_dtype
        normed_BTD = (wide_BTD * inverse_BT1).astype(dtype)
        return normed_BTD * gain_D.astype(dtype)[None, None, :]


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), without biases.

    Attributes:
      hidden: F.
    """

    cfg: Model
    hidden: int

    def setup(self):
        cfg = self.cfg
        shape, axes = (cfg.d_model, self.hidden), ("embed", "hidden")
        self.gate = weight(self, "gate", shape, axes, cfg.init_std)
        self.up = weight(self, "up", shape, axes, cfg.init_std)
        self.down = weight(self, "down", shape[::-1], axes[::-1], cfg.init_std)

    def __call__(self, x_BTD):
        """The output, [B, T, D]."""
        return self.activate(x_BTD) @ self.down.astype(self.cfg.compute_dtype)

    def activate(self, x_BTD):
        """The hidden layer, [B, T, F]."""
        dtype = self.cfg.compute_dtype
        gate_BTF = nn.silu(x_BTD @ self.gate.astype(dtype))
        hidden_BTF = gate_BTF * (x_BTD @ self.up.astype(dtype))
        return constrain(hidden_BTF, "batch", "length", "hidden")
