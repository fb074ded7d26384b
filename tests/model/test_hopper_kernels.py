"""The kernels for Hopper against numpy, on a CPU in Pallas's interpreter, which also looks for races."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.experimental.pallas import mosaic_gpu

from sparsecod_jax.model.hopper_kernels import TILE, rows_times_matrices, rows_times_rows

pallas: Any = mosaic_gpu
pytestmark = pytest.mark.skipif(not hasattr(pallas, "force_gpu_interpret_mode"), reason="needs the interpreter of jax 0.11")
WIDTH, HIDDEN = 128, 320
SIZES = [(130, 0, 7, 247), (192, 64, 128, 0), (1, 2, 3, 378), (0, 0, 40, 0)]


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape, jnp.bfloat16)


def interpreted(kernel, x, w, sizes, **options):
    with pallas.force_gpu_interpret_mode(pallas.InterpretGPUParams(detect_races=True)):
        y = kernel(x, w, jnp.array(sizes), cores=3, **options)
    return (np.asarray(z, np.float32) for z in (x, w, y))


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_rows_times_matrices(sizes, transpose):
    w = normal(1, len(sizes), *((HIDDEN, WIDTH) if transpose else (WIDTH, HIDDEN)))
    x, w, y = interpreted(rows_times_matrices, normal(0, 2 * TILE, WIDTH), w, sizes, transpose=transpose)
    for matrix, size, end in zip(w, sizes, np.cumsum(sizes), strict=True):
        mine = slice(end - size, end)
        tiny.assert_relative((y[mine],), (x[mine] @ (matrix.T if transpose else matrix),), 3e-3)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_rows_times_rows(sizes):
    x, y, w = interpreted(rows_times_rows, normal(0, 2 * TILE, WIDTH), normal(1, 2 * TILE, HIDDEN), sizes)
    for matrix, size, end in zip(w, sizes, np.cumsum(sizes), strict=True):
        mine = slice(end - size, end)
        tiny.assert_relative((matrix,), (x[mine].T @ y[mine],), 3e-3)
