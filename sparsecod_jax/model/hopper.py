"""How are grouped products computed on NVIDIA's Hopper in bfloat16? By two kernels, as XLA's `ragged_dot` is 45 times slower.

R rows sorted by group, E groups, D and F widths.
"""

import re

import jax
import jax.numpy as jnp

KINDS = re.compile(r"\bG?H(20|100|200|800)\b")  # of devices, as jax names them
ALIGNMENT = 64  # the kernels' step; widths are padded to it


def is_served(x_RD: jax.Array) -> bool:
    """Whether these kernels take such rows, bfloat16 and a multiple of 8, where this is compiled for."""
    return (
        bool(KINDS.search(_device().device_kind))
        and x_RD.dtype == jnp.bfloat16
        and len(x_RD) % 8 == 0
    )


def grouped_matmul(
    x_RD: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array, *, transpose: bool = False
) -> jax.Array:
    """Each row times its group's matrix, or that matrix transposed: then the rows are [R, F]."""
    from sparsecod_jax.model.hopper_kernels import (
        rows_times_matrices,
    )  # here, as not every jaxlib has what they need

    width = w_EDF.shape[1 if transpose else 2]
    y = rows_times_matrices(
        _padded(x_RD, 1),
        _padded(w_EDF, 1, 2),
        sizes_E,
        transpose=transpose,
        cores=_cores(),
    )
    return y[:, :width]


def grouped_matmul_backward(
    x_RD, w_EDF, sizes_E, grad_RF
) -> tuple[jax.Array, jax.Array]:
    """Gradients of the rows and of the matrices."""
    from sparsecod_jax.model.hopper_kernels import rows_times_rows

    _, D, F = w_EDF.shape
    grad_w = rows_times_rows(
        _padded(x_RD, 1), _padded(grad_RF, 1), sizes_E, cores=_cores()
    )
    return grouped_matmul(grad_RF, w_EDF, sizes_E, transpose=True), grad_w[:, :D, :F]


def _cores() -> int:
    cores = _device().num_cores
    assert cores, "jax counts the cores of every GPU"
    return cores


def _device() -> jax.sharding.AbstractDevice:
    """What this is compiled for: the devices of the mesh, which need not be here; without a mesh the first that is."""
    mesh = jax.sharding.get_abstract_mesh()
    return (
        mesh.abstract_device
        or jax.make_mesh(
            (1,), ("device",), devices=jax.devices()[:1]
        ).abstract_mesh.abstract_device
    )


def _padded(z: jax.Array, *axes: int) -> jax.Array:
    """Zeros up to the alignment at the end of the given axes."""
    return jnp.pad(
        z,
        [
            (0, -size % ALIGNMENT if axis in axes else 0)
            for axis, size in enumerate(z.shape)
        ],
    )
