"""How are grouped products computed on NVIDIA's Hopper in bfloat16?

Grouped products on GPUs: by two kernels, as XLA's `ragged_dot` is 45 times slower.

R rows sorted by group, E groups, D and F widths.
"""

import re

import jax
import jax.numpy as jnp

KINDS = re.compile(r"\bG?H(20|100|200|800)\b")  # of devices, as jax names them
ALIGNMENT = 64  # the kernels' step; widths are padded to it


def is_served(x_RD: jax.Array) -> bool:
    """Whether the kernels serve such rows on the device that this is compiled for.

    They serve bfloat16 and a multiple of 8 rows.
    """
    is_hopper = bool(KINDS.search(_device().device_kind))
    return is_hopper and x_RD.dtype == jnp.bfloat16 and len(x_RD) % 8 == 0


def grouped_matmul(
    x_RD: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array, *, transpose: bool = False
) -> jax.Array:
    """Each row times its group's matrix, [R, F].

    Args:
      x_RD: rows, sorted by group.
      w_EDF: the groups' matrices.
      sizes_E: rows of each group.
      transpose: each row times its group's matrix transposed: the rows are [R, F], the
        result is [R, D].
    """
    # Here, as not every jaxlib has what they need.
    from sparsecod_jax.model.hopper_kernels import rows_times_matrices

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
    """Gradients of the rows, [R, D], and of the matrices, [E, D, F]."""
    from sparsecod_jax.model.hopper_kernels import rows_times_rows

    _, D, F = w_EDF.shape
    grad_w = rows_times_rows(
        _padded(x_RD, 1), _padded(grad_RF, 1), sizes_E, cores=_cores()
    )
    grad_x_RD = grouped_matmul(grad_RF, w_EDF, sizes_E, transpose=True)
    return grad_x_RD, grad_w[:, :D, :F]


def _cores() -> int:
    cores = _device().num_cores
    assert cores, "jax counts the cores of every GPU"
    return cores


def _device() -> jax.sharding.AbstractDevice:
    """What this is compiled for: the devices of the mesh, which need not be here.

    Without a mesh it is the first device that is here.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.abstract_device:
        return mesh.abstract_device
    own = jax.make_mesh((1,), ("device",), devices=jax.devices()[:1])
    device = own.abstract_mesh.abstract_device
    assert device, "a mesh of devices that are here has their kind"
    return device


def _padded(z: jax.Array, *axes: int) -> jax.Array:
    """Zeros up to the alignment at the end of the given axes."""
    widths = [(0, 0)] * z.ndim
    for axis in axes:
        widths[axis] = (0, -z.shape[axis] % ALIGNMENT)
    return jnp.pad(z, widths)
