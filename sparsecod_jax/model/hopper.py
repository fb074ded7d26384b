"""How are grouped products computed on NVIDIA's Hopper in bfloat16? By kernels that JAX ships; XLA's `ragged_dot` is 45 times slower.

R rows sorted by group, E groups, D and F widths.
"""

from typing import Any

import jax
import jax.numpy as jnp

ALIGNMENT = 128  # columns of a tile; widths are padded to it
WIDE_TILE = 192  # columns, where they divide the width: 6 to 14 % faster for rows
TILES: dict[str, Any] = {"block_m": 128, "block_k": 64, "grid_block_n": 4}  # these and the steps below measured on an H200


def is_here() -> bool:
    """Whether the first device is a Hopper: without one these kernels can't even be compiled, as JAX's code asks it for its cores."""
    device = jax.devices()[0]
    return device.platform == "gpu" and device.compute_capability == "9.0"


def is_served(x_RD: jax.Array) -> bool:
    """Whether these kernels run here on such rows: bfloat16, and a multiple of 8."""
    return is_here() and x_RD.dtype == jnp.bfloat16 and len(x_RD) % 8 == 0


def grouped_matmul(x_RD: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array, *, transpose: bool = False) -> jax.Array:
    """Each row times its group's matrix, or that matrix transposed: then the rows are [R, F]."""
    from jax.experimental.pallas.ops.gpu.ragged_dot_mgpu import ragged_dot  # here, as not every jaxlib has what it needs

    width = w_EDF.shape[1 if transpose else 2]
    w_EDF = _padded(w_EDF, 1, 2)
    tile = ALIGNMENT if w_EDF.shape[1 if transpose else 2] % WIDE_TILE else WIDE_TILE
    y = ragged_dot(_padded(x_RD, 1), w_EDF, group_sizes=sizes_E, transpose_rhs=transpose, block_n=tile, max_concurrent_steps=4, **TILES)
    return y[:, :width]


def grouped_matmul_backward(x_RD, w_EDF, sizes_E, grad_RF) -> tuple[jax.Array, jax.Array]:
    """Gradients of the rows and of the matrices."""
    from jax.experimental.pallas.ops.gpu.transposed_ragged_dot_mgpu import transposed_ragged_dot

    _, D, F = w_EDF.shape
    x_RD, rows_RF = _padded(x_RD, 1), _padded(grad_RF, 1)
    grad_w = transposed_ragged_dot(x_RD, rows_RF, group_sizes=sizes_E, block_n=ALIGNMENT, max_concurrent_steps=5, **TILES)
    return grouped_matmul(grad_RF, w_EDF, sizes_E, transpose=True), grad_w[:, :D, :F]


def _padded(z: jax.Array, *axes: int) -> jax.Array:
    """Zeros up to the alignment at the end of the given axes."""
    return jnp.pad(z, [(0, -size % ALIGNMENT if axis in axes else 0) for axis, size in enumerate(z.shape)])
