"""The kernels for NVIDIA's Hopper against numpy, on one: `make test-gpu`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsecod_jax.model import hopper
from sparsecod_jax.model.grouped_matmul import grouped_matmul
from tests.support import tiny_configs

CASES = {
    "the larger mixture": (65536, 2048, 1024, [1 / 64] * 64, 65536),
    "the smaller mixture, skewed": (
        8192,
        768,
        1536,
        [2.0**-n for n in range(1, 32)] + [2.0**-31],
        8192,
    ),
    "widths of the recipe": (4096, 1120, 1120, [1 / 64] * 64, 4096),
    "one group": (1000, 192, 448, [0, 0, 1, 0], 1000),
    "empty groups at both ends": (4096, 128, 128, [0, 0.5, 0.5, 0], 4096),
    "rows beyond the groups": (5000, 256, 256, [1 / 8] * 8, 3000),
}


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("rows", "width", "hidden", "shares", "filled"), CASES.values(), ids=CASES
)
def test_equals_numpy(rows, width, hidden, shares, filled):
    rng = np.random.default_rng(0)
    sizes = rng.multinomial(filled, shares).astype(np.int32)
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (rows, width), jnp.bfloat16)
    w = jax.random.normal(keys[1], (len(sizes), width, hidden), jnp.bfloat16)
    grad = jax.random.normal(keys[2], (rows, hidden), jnp.bfloat16)
    assert hopper.is_served(x)
    y, pull = jax.vjp(
        lambda x, w: grouped_matmul(x, w, jnp.asarray(sizes), filled == rows), x, w
    )
    grad_x, grad_w = pull(grad)
    x, w, grad, y, grad_x, grad_w = (
        np.asarray(z, np.float32) for z in (x, w, grad, y, grad_x, grad_w)
    )
    assert not y[filled:].any()
    assert not grad_x[filled:].any()
    for e, end in enumerate(np.cumsum(sizes)):
        mine = slice(end - sizes[e], end)
        expected = x[mine] @ w[e], grad[mine] @ w[e].T, x[mine].T @ grad[mine]
        tiny_configs.assert_relative((y[mine], grad_x[mine], grad_w[e]), expected, 3e-3)
