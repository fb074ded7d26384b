"""Rows times their group's matrix: against a loop over groups, against jax's own, and
what each platform is given.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsecod_jax.model.grouped_matmul import grouped_matmul
from tests.support import tiny_configs

SIZES = {  # rows, then the rows of each group
    "uneven": (40, [3, 17, 1, 19]),
    "first group empty": (40, [0, 21, 19]),
    "middle groups empty": (40, [21, 0, 0, 19]),
    "last group empty": (40, [21, 19, 0]),
    "all rows in one group": (300, [0, 300, 0]),
    "one group": (40, [40]),
    "one row": (1, [0, 1]),
    "one block, unevenly": (128, [5, 123]),
    "many blocks": (700, [129, 0, 128, 1, 300, 142]),
    "groups end before the rows": (40, [3, 0, 18]),
    "groups end blocks before the rows": (700, [150, 0, 161]),
    "no group has a row": (40, [0, 0]),
}
each_size = pytest.mark.parametrize(("rows", "sizes"), SIZES.values(), ids=SIZES)


def _inputs(rows, sizes, dtype):
    """Rows, matrices, sizes and the output's gradient; rows of no group are large."""
    rng = np.random.default_rng(0)
    x, w, grad = (
        rng.normal(size=shape).astype(dtype)
        for shape in ((rows, 6), (len(sizes), 6, 10), (rows, 10))
    )
    x[sum(sizes) :] = 1e3
    grad[sum(sizes) :] = 1e3
    return x, w, np.array(sizes, np.int32), grad


def _both_ways(function, x, w, sizes, grad):
    """The output, and the gradients of x and of w."""
    out, transposed = jax.vjp(lambda x, w: function(x, w, sizes), x, w)
    return out, *transposed(grad)


_ours = jax.jit(lambda *inputs: _both_ways(grouped_matmul, *inputs))


def _loop(x, w, sizes, grad):
    out, grad_x, grad_w = (
        np.zeros((len(x), w.shape[2])),
        np.zeros(x.shape),
        np.zeros(w.shape),
    )
    ends = np.cumsum(sizes)
    for e, (first, end) in enumerate(zip(ends - sizes, ends, strict=True)):
        out[first:end] = x[first:end] @ w[e]
        grad_x[first:end] = grad[first:end] @ w[e].T
        grad_w[e] = x[first:end].T @ grad[first:end]
    return out, grad_x, grad_w


@each_size
def test_equals_a_loop_over_groups(rows, sizes):
    with jax.enable_x64():
        inputs = _inputs(rows, sizes, np.float64)
        for actual, expected in zip(_ours(*inputs), _loop(*inputs), strict=True):
            assert actual.dtype == jnp.float64
            np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", ["uneven", "many blocks", "last group empty"])
def test_is_the_same_when_all_rows_are_known_to_be_grouped(case):
    rows, sizes = SIZES[case]
    inputs = _inputs(rows, sizes, np.float32)
    told = jax.jit(
        lambda *inputs: _both_ways(
            lambda x, w, sizes: grouped_matmul(x, w, sizes, True), *inputs
        )
    )
    assert sum(sizes) == rows
    for actual, expected in zip(told(*inputs), _ours(*inputs), strict=True):
        np.testing.assert_array_equal(actual, expected)


@each_size
def test_equals_ragged_dot(rows, sizes):
    inputs = _inputs(rows, sizes, np.float32)
    expected = jax.jit(lambda *inputs: _both_ways(jax.lax.ragged_dot, *inputs))(*inputs)
    for actual, wanted in zip(_ours(*inputs), expected, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=2e-5)


def test_bfloat16_stays_and_sums_are_wider():
    """The inputs are exact in both, so that only the arithmetic and the last rounding
    can differ.
    """
    rounded = [
        jnp.asarray(z, z.dtype if z.dtype == np.int32 else jnp.bfloat16)
        for z in _inputs(3000, [1700, 0, 1300], np.float32)
    ]
    actual = _ours(*rounded)
    assert {z.dtype for z in actual} == {jnp.dtype("bfloat16")}
    expected = _ours(
        *(z if z.dtype == jnp.int32 else z.astype(jnp.float32) for z in rounded)
    )
    tiny_configs.assert_relative(actual, expected, 2.5e-3)


@pytest.mark.parametrize(
    ("platform", "ragged"), [("tpu", True), ("cuda", True), ("cpu", False)]
)
def test_which_platform_is_given_ragged_dot(platform, ragged):
    x, w, sizes, grad = _inputs(40, [21, 19], np.float32)
    for traced in (
        jax.jit(grouped_matmul).trace(x, w, sizes),
        _ours.trace(x, w, sizes, grad),
    ):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("ragged_dot" in text) == ragged
        assert ("stablehlo.while" in text) != ragged


@pytest.mark.parametrize(
    ("kind", "dtype", "kernels"),
    [
        ("NVIDIA H100 80GB HBM3", jnp.bfloat16, 3),
        ("NVIDIA GH200 480GB", jnp.bfloat16, 3),
        ("NVIDIA H200", jnp.float32, 0),
        ("NVIDIA A100-SXM4-80GB", jnp.bfloat16, 0),
    ],
)
def test_a_hopper_is_given_kernels_of_its_own(kind, dtype, kernels):
    """For the devices of the mesh, though they are not here."""
    device = jax.sharding.AbstractDevice(
        device_kind=kind, num_cores=132, platform="gpu"
    )
    x, w, sizes, grad = _inputs(40, [21, 19], np.float32)
    x, w, grad = (jnp.asarray(z, dtype) for z in (x, w, grad))
    mesh = jax.sharding.AbstractMesh(
        (1,), ("data",), (jax.sharding.AxisType.Auto,), abstract_device=device
    )
    with jax.sharding.use_abstract_mesh(mesh):
        traced = jax.jit(lambda *inputs: _both_ways(grouped_matmul, *inputs)).trace(
            x, w, sizes, grad
        )
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("@mosaic_gpu") == kernels
    assert ("ragged_dot" in text) == (not kernels)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_the_gradients_of_ragged_dot_are_ragged_dots(platform):
    x, w, sizes, grad = _inputs(40, [21, 19], np.float32)
    text = (
        _ours.trace(x, w, sizes, grad).lower(lowering_platforms=(platform,)).as_text()
    )
    assert text.count('"chlo.ragged_dot"') == 3
