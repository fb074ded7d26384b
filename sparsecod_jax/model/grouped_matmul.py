"""How are rows multiplied, each group of them by a matrix of its own?

Grouped products: the matrix multiplications of a mixture of experts, on each platform.

R rows sorted by group, E groups, D and F widths, K rows of a block.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from sparsecod_jax.model import hopper

# Rows multiplied at once on CPU: smaller blocks are slower per row, larger ones multiply more
# rows of other groups in vain.
BLOCK = 128


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def grouped_matmul(
    x_RD: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array, all_grouped: bool = False
) -> jax.Array:
    """Row r times the matrix of its group, [R, F].

    On TPU this is `jax.lax.ragged_dot`. Elsewhere that one multiplies every row by every
    matrix, so on CPU rows go block by block, and on NVIDIA's Hopper in bfloat16 through
    kernels for it (`hopper`). Other GPUs and types are left to `ragged_dot`.

    Args:
      x_RD: the first sizes_E[0] rows are group 0, the next sizes_E[1] rows group 1, and so
        on.
      w_EDF: the groups' matrices.
      sizes_E: rows of each group.
      all_grouped: the groups cover all rows. Otherwise they may end before the rows do: the
        rows beyond them must be finite, give zeros, and take no part in any gradient.
    """
    y_RF = jax.lax.platform_dependent(
        x_RD, w_EDF, sizes_E, cpu=_blocked, cuda=_cuda, default=jax.lax.ragged_dot
    )
    return y_RF if all_grouped else _in_groups(y_RF, sizes_E)


def _forward(x_RD, w_EDF, sizes_E, all_grouped):
    y_RF = grouped_matmul(x_RD, w_EDF, sizes_E, all_grouped)
    return y_RF, (x_RD, w_EDF, sizes_E)


def _backward(all_grouped, saved, grad_RF):
    """Gradients of the rows and of the matrices; none of the sizes."""
    x_RD, w_EDF, sizes_E = saved
    grad_x_RD, grad_w_EDF = jax.lax.platform_dependent(
        x_RD,
        w_EDF,
        sizes_E,
        grad_RF,
        cpu=_blocked_backward,
        cuda=_cuda_backward,
        default=_ragged_backward,
    )
    if not all_grouped:
        grad_x_RD = _in_groups(grad_x_RD, sizes_E)
    return grad_x_RD, grad_w_EDF, None


grouped_matmul.defvjp(_forward, _backward)


def _in_groups(z_RF, sizes_E):
    """Zeros for the rows beyond the groups, which a kernel may leave uninitialised."""
    is_grouped_R = jnp.arange(len(z_RF)) < sizes_E.sum()
    return jnp.where(is_grouped_R[:, None], z_RF, 0)


def _cuda(x_RD, w_EDF, sizes_E):
    multiply = hopper.grouped_matmul if hopper.is_served(x_RD) else jax.lax.ragged_dot
    return multiply(x_RD, w_EDF, sizes_E)


def _cuda_backward(x_RD, w_EDF, sizes_E, grad_RF):
    if hopper.is_served(x_RD):
        return hopper.grouped_matmul_backward(x_RD, w_EDF, sizes_E, grad_RF)
    return _ragged_backward(x_RD, w_EDF, sizes_E, grad_RF)


def _ragged_backward(x_RD, w_EDF, sizes_E, grad_RF):
    def multiply(x_RD, w_EDF):
        return jax.lax.ragged_dot(x_RD, w_EDF, sizes_E)

    _, pull_back = jax.vjp(multiply, x_RD, w_EDF)
    return pull_back(grad_RF)


def _blocked(x_RD, w_EDF, sizes_E):
    return _rows_times_matrices(x_RD, w_EDF, sizes_E, contract=0)


def _blocked_backward(x_RD, w_EDF, sizes_E, grad_RF):
    """With y = x w: the gradient of x is grad w^T, that of w is x^T grad, by groups."""
    grad_x_RD = _rows_times_matrices(grad_RF, w_EDF, sizes_E, contract=1)
    grad_w_EDF = _products_of_rows(x_RD, grad_RF, sizes_E)
    return grad_x_RD, grad_w_EDF.astype(w_EDF.dtype)


def _rows_times_matrices(x_RD, w_EDF, sizes_E, *, contract: int):
    """Each row times its group's matrix, over axis `contract` of that matrix."""
    # Contracted are axis 1 of the rows and `contract` of the matrix; no axis is batched.
    dimensions = (((1,), (contract,)), ((), ()))

    def group(e, out_RF):
        w_DF = w_EDF[e]

        def block(out_RF, take, put, mine_K1):
            product_KF = jax.lax.dot_general(take(x_RD), w_DF, dimensions)
            # The rows of other groups keep what they have.
            return put(out_RF, jnp.where(mine_K1, product_KF, take(out_RF)))

        return _over_blocks(sizes_E, e, len(x_RD), block, out_RF)

    shape = (len(x_RD), w_EDF.shape[2 - contract])
    zero_RF = jnp.zeros(shape, x_RD.dtype)
    return jax.lax.fori_loop(0, len(w_EDF), group, zero_RF)


def _products_of_rows(x_RD, grad_RF, sizes_E):
    """The sum over a group's rows of the outer products of `x_RD` and `grad_RF`, [E, D, F].

    In at least float32.
    """
    wide = jnp.promote_types(x_RD.dtype, jnp.float32)
    # Contracted are the rows of both; no axis is batched.
    dimensions = (((0,), (0,)), ((), ()))

    def group(_, e):
        def block(sum_DF, take, put, mine_K1):
            # Zeros in one factor keep the rows of other groups out of the sum.
            own_KD = jnp.where(mine_K1, take(x_RD), 0)
            return sum_DF + jax.lax.dot_general(
                own_KD, take(grad_RF), dimensions, preferred_element_type=wide
            )

        zero_DF = jnp.zeros((x_RD.shape[1], grad_RF.shape[1]), wide)
        return None, _over_blocks(sizes_E, e, len(x_RD), block, zero_DF)

    _, sums_EDF = jax.lax.scan(group, None, jnp.arange(len(sizes_E)))
    return sums_EDF


def _over_blocks(sizes_E, e, rows: int, step: Callable, carry):
    """Runs `step` over the blocks of K rows that cover group `e`; returns the last carry.

    A step gets the carry, `take` and `put`, which read and write the block's rows, and which
    of these rows are the group's, [K, 1]: the last block of a group also covers rows of its
    neighbours.
    """
    length = min(BLOCK, rows)
    end = jnp.cumsum(sizes_E)[e]
    first = end - sizes_E[e]

    def body(i, carry):
        # A block that would reach beyond the rows is moved up, and covers some rows again;
        # those count as not the group's, as they lie before where it should begin.
        begin = first + i * length
        at = jnp.minimum(begin, rows - length)
        number_K1 = at + jnp.arange(length)[:, None]

        def take(z):
            return jax.lax.dynamic_slice_in_dim(z, at, length)

        def put(z, part):
            return jax.lax.dynamic_update_slice_in_dim(z, part, at, 0)

        mine_K1 = (number_K1 >= begin) & (number_K1 < end)
        return step(carry, take, put, mine_K1)

    blocks = -(-sizes_E[e] // length)
    return jax.lax.fori_loop(0, blocks, body, carry)
