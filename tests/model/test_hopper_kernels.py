"""The kernels for Hopper against numpy, on a CPU in Pallas's interpreter, which also
looks for races.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu

from sparsecod_jax.model.hopper_kernels import (
    STEP,
    TILE,
    rows_times_matrices,
    rows_times_rows,
)
from tests.support import tiny_configs

pallas: Any = mosaic_gpu
pytestmark = pytest.mark.skipif(
    not hasattr(pallas, "force_gpu_interpret_mode"),
    reason="needs the interpreter of jax 0.11",
)
ROWS, WIDTH, HIDDEN = 2 * TILE + 8, 5 * STEP, 3 * STEP + TILE
SIZES = [
    (130, 0, 7, 255),
    (192, 64, 128, 8),
    (1, 2, 3, 386),
    (0, 0, 40, 0),
    (0, 0, 0, 0),
]


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape, jnp.bfloat16)


@pytest.fixture
def interpreted(capfd):
    """Runs a kernel: the arguments and the result as float32, once no race was found,
    which the interpreter only prints.
    """

    def run(kernel, x, w, sizes, **options):
        with pallas.force_gpu_interpret_mode(
            pallas.InterpretGPUParams(detect_races=True)
        ):
            y = kernel(x, w, jnp.array(sizes), cores=3, **options)
        arrays = [np.asarray(z, np.float32) for z in (x, w, y)]
        assert "RACE" not in "".join(capfd.readouterr())
        return arrays

    return run


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_rows_times_matrices(interpreted, sizes, transpose):
    w = normal(1, len(sizes), *((HIDDEN, WIDTH) if transpose else (WIDTH, HIDDEN)))
    x, w, y = interpreted(
        rows_times_matrices, normal(0, ROWS, WIDTH), w, sizes, transpose=transpose
    )
    for matrix, size, end in zip(w, sizes, np.cumsum(sizes), strict=True):
        mine = slice(end - size, end)
        tiny_configs.assert_relative(
            (y[mine],), (x[mine] @ (matrix.T if transpose else matrix),), 3e-3
        )


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_rows_times_rows(interpreted, sizes):
    x, y, w = interpreted(
        rows_times_rows, normal(0, ROWS, WIDTH), normal(1, ROWS, HIDDEN), sizes
    )
    for matrix, size, end in zip(w, sizes, np.cumsum(sizes), strict=True):
        mine = slice(end - size, end)
        tiny_configs.assert_relative((matrix,), (x[mine].T @ y[mine],), 3e-3)
