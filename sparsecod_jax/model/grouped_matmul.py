"""How are rows multiplied, each group of them by a matrix of its own?

R rows sorted by group, E groups, D and F widths.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from sparsecod_jax.model import hopper

BLOCK = 128  # rows multiplied at once on CPU: smaller blocks are slower a row, larger ones multiply more rows that don't count


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def grouped_matmul(
    x_RD: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array, all_grouped: bool = False
) -> jax.Array:
    """Row r times the matrix of its group, [R, F].

    The first sizes_E[0] rows are group 0, the next sizes_E[1] rows group 1, and so on. Unless `all_grouped`, the groups may end before the
    rows do: the rows beyond them must be finite, give zeros, and take no part in any gradient.

    On TPU this is `jax.lax.ragged_dot`. Elsewhere that one multiplies every row by every matrix, so on CPU rows go block by block, and on
    NVIDIA's Hopper in bfloat16 through kernels for it (`hopper`). Other GPUs and types are left to `ragged_dot`.
    """
    y_RF = jax.lax.platform_dependent(
        x_RD, w_EDF, sizes_E, cpu=_blocked, cuda=_cuda, default=jax.lax.ragged_dot
    )
    return y_RF if all_grouped else _in_groups(y_RF, sizes_E)


def _forward(x_RD, w_EDF, sizes_E, all_grouped):
    return grouped_matmul(x_RD, w_EDF, sizes_E, all_grouped), (x_RD, w_EDF, sizes_E)


def _backward(all_grouped, saved, grad_RF):
    x_RD, w_EDF, sizes_E = saved
    gradients = {
        "cpu": _blocked_backward,
        "cuda": _cuda_backward,
        "default": _ragged_backward,
    }
    grad_x_RD, grad_w_EDF = jax.lax.platform_dependent(
        x_RD, w_EDF, sizes_E, grad_RF, **gradients
    )
    return (
        grad_x_RD if all_grouped else _in_groups(grad_x_RD, sizes_E),
        grad_w_EDF,
        None,
    )


grouped_matmul.defvjp(_forward, _backward)


def _in_groups(z_RF, sizes_E):
    """Zeros for the rows beyond the groups, which a kernel may leave uninitialised."""
    return jnp.where((jnp.arange(len(z_RF)) < sizes_E.sum())[:, None], z_RF, 0)


def _cuda(x_RD, w_EDF, sizes_E):
    multiply = hopper.grouped_matmul if hopper.is_served(x_RD) else jax.lax.ragged_dot
    return multiply(x_RD, w_EDF, sizes_E)


def _cuda_backward(x_RD, w_EDF, sizes_E, grad_RF):
    backward = (
        hopper.grouped_matmul_backward if hopper.is_served(x_RD) else _ragged_backward
    )
    return backward(x_RD, w_EDF, sizes_E, grad_RF)


def _ragged_backward(x_RD, w_EDF, sizes_E, grad_RF):
    return jax.vjp(lambda x, w: jax.lax.ragged_dot(x, w, sizes_E), x_RD, w_EDF)[1](
        grad_RF
    )


def _blocked(x_RD, w_EDF, sizes_E):
    return _rows_times_matrices(x_RD, w_EDF, sizes_E, contract=0)


def _blocked_backward(x_RD, w_EDF, sizes_E, grad_RF):
    return _rows_times_matrices(grad_RF, w_EDF, sizes_E, contract=1), _products_of_rows(
        x_RD, grad_RF, sizes_E
    ).astype(w_EDF.dtype)


def _rows_times_matrices(x_RD, w_EDF, sizes_E, *, contract: int):
    """Each row times its group's matrix, over axis `contract` of that matrix."""

    def group(e, out_RF):
        w_DF = w_EDF[e]

        def block(out_RF, take, put, mine_K1):
            product = jax.lax.dot_general(
                take(x_RD), w_DF, (((1,), (contract,)), ((), ()))
            )
            return put(out_RF, jnp.where(mine_K1, product, take(out_RF)))

        return _over_blocks(sizes_E, e, len(x_RD), block, out_RF)

    return jax.lax.fori_loop(
        0,
        len(w_EDF),
        group,
        jnp.zeros((len(x_RD), w_EDF.shape[2 - contract]), x_RD.dtype),
    )


def _products_of_rows(x_RD, grad_RF, sizes_E):
    """For each group the sum over its rows of the outer product of `x_RD` and `grad_RF`, [E, D, F], in at least float32."""
    wide = jnp.promote_types(x_RD.dtype, jnp.float32)

    def group(_, e):
        def block(sum_DF, take, put, mine_K1):
            rows = (((0,), (0,)), ((), ()))
            return sum_DF + jax.lax.dot_general(
                jnp.where(mine_K1, take(x_RD), 0),
                take(grad_RF),
                rows,
                preferred_element_type=wide,
            )

        return None, _over_blocks(
            sizes_E,
            e,
            len(x_RD),
            block,
            jnp.zeros((x_RD.shape[1], grad_RF.shape[1]), wide),
        )

    return jax.lax.scan(group, None, jnp.arange(len(sizes_E)))[1]


def _over_blocks(sizes_E, e, rows: int, step: Callable, carry):
    """Runs `step` over the blocks of K rows that cover group `e`.

    A step gets the carry, `take` and `put`, which read and write the block's rows, and which of these rows are the group's, [K, 1]: the
    last block of a group also covers rows of its neighbours.
    """
    length = min(BLOCK, rows)
    end = jnp.cumsum(sizes_E)[e]
    first = end - sizes_E[e]

    def body(i, carry):
        wanted = first + i * length
        at = jnp.minimum(wanted, rows - length)
        number_K1 = at + jnp.arange(length)[:, None]
        return step(
            carry,
            lambda z: jax.lax.dynamic_slice_in_dim(z, at, length),
            lambda z, part: jax.lax.dynamic_update_slice_in_dim(z, part, at, 0),
            (number_K1 >= wanted) & (number_K1 < end),
        )

    return jax.lax.fori_loop(0, -(-sizes_E[e] // length), body, carry)
