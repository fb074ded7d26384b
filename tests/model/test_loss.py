"""The head and its cross-entropy, chunk by chunk on many devices, against the plain
formula on all logits.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparsecod_jax import config
from sparsecod_jax.model import loss
from sparsecod_jax.model.loss import cross_entropy
from sparsecod_jax.parallel.sharding import make_mesh
from tests.support import tiny_configs

B, T, D, V = 8, 12, 16, 40
MESHES = {"one": (1, 1, 1, 1), "tensor": (2, 2, 1, 2), "expert": (1, 2, 2, 2)}
on_each_mesh = pytest.mark.parametrize("sizes", MESHES.values(), ids=MESHES)
in_chunks = pytest.mark.parametrize(
    "logits", [2**27, 2 * 6 * 40, 1], ids=["one chunk", "chunks", "the smallest chunks"]
)


@pytest.fixture(autouse=True)
def _nothing_traced_with_another_limit():
    jax.clear_caches()


def _inputs(dtype: Any = np.float64, batch=B):
    """Normed stream, head, targets and weights, of which some are zero; the logits are
    some tens.
    """
    rng = np.random.default_rng(0)
    h_BTD, head_DV = (
        3 * rng.normal(size=(batch, T, D)).astype(dtype),
        3 * rng.normal(size=(D, V)).astype(dtype),
    )
    weights_BT = rng.uniform(0.5, 2, (batch, T)) * (rng.random((batch, T)) < 0.8)
    return (
        jnp.asarray(h_BTD),
        jnp.asarray(head_DV),
        rng.integers(0, V, (batch, T)),
        weights_BT.astype(np.promote_types(dtype, np.float32)),
    )


def _plain(h_BTD, head_DV, targets_BT, weights_BT):
    return (
        weights_BT
        * optax.softmax_cross_entropy_with_integer_labels(h_BTD @ head_DV, targets_BT)
    ).sum()


def _mesh(sizes):
    return make_mesh(config.Mesh(*sizes), jax.devices()[: np.prod(sizes)])


def _both(function, inputs, sizes=(1, 1, 1, 1)):
    """The value computed alone, the value beside a gradient, and the gradients of
    stream and head.
    """
    with jax.set_mesh(_mesh(sizes)):
        alone = jax.jit(function)(*inputs)
        value, gradients = jax.jit(jax.value_and_grad(function, (0, 1)))(*inputs)
    return alone, value, *gradients


@on_each_mesh
@in_chunks
def test_equals_the_plain_formula(sizes, logits, monkeypatch):
    monkeypatch.setattr(loss, "LOGITS", logits)
    with jax.enable_x64():
        inputs = _inputs()
        assert (inputs[3] == 0).sum() > 10
        expected = _both(_plain, inputs)
        tiny_configs.assert_relative(
            _both(cross_entropy, inputs, sizes), expected, 1e-12
        )


@pytest.mark.parametrize(
    ("most", "chunk"), [(8 * 12 * 40, 12), (8 * 5 * 40, 4), (8 * 40, 1), (1, 1)]
)
def test_a_chunk_is_the_largest_divisor_that_stays_below_the_limit(
    most, chunk, monkeypatch
):
    monkeypatch.setattr(loss, "LOGITS", most)
    text = str(jax.make_jaxpr(cross_entropy)(*_inputs(np.float32)))
    assert set(re.findall(r"f32\[8,(\d+),40\]", text)) == {str(chunk)}


def test_a_gradient_is_scaled_by_what_comes_after():
    with jax.enable_x64():
        inputs = _inputs()

        def scaled(function):
            return lambda *inputs: jnp.square(function(*inputs) / 7)

        tiny_configs.assert_relative(
            _both(scaled(cross_entropy), inputs, (1, 2, 2, 2)),
            _both(scaled(_plain), inputs),
            1e-12,
        )


@pytest.mark.parametrize("peak", [1e4, -1e4])
def test_large_logits_stay_finite(peak):
    h_BTD, head_DV, targets_BT, weights_BT = _inputs(np.float32)
    head_DV = head_DV.at[0].add(peak)  # of both signs, as the stream is
    found = _both(cross_entropy, (h_BTD, head_DV, targets_BT, weights_BT), (2, 2, 1, 2))
    assert all(np.isfinite(z).all() for z in found)
    tiny_configs.assert_relative(
        found[:2], _both(_plain, (h_BTD, head_DV, targets_BT, weights_BT))[:2], 1e-5
    )


@on_each_mesh
def test_sums_of_a_bfloat16_stream_are_float32(sizes, monkeypatch):
    """As if its products were taken in float32, but for the gradients' own rounding,
    which is 2^-9 of each number.
    """
    monkeypatch.setattr(loss, "LOGITS", 2 * 6 * 40)
    h_BTD, head_DV, targets_BT, weights_BT = _inputs(np.float32)
    narrow, rounded = (
        h_BTD.astype(jnp.bfloat16),
        head_DV.astype(jnp.bfloat16).astype(jnp.float32),
    )
    found = _both(cross_entropy, (narrow, rounded, targets_BT, weights_BT), sizes)
    assert [z.dtype for z in found] == [
        jnp.float32,
        jnp.float32,
        jnp.bfloat16,
        jnp.float32,
    ]
    expected = _both(
        _plain, (narrow.astype(jnp.float32), rounded, targets_BT, weights_BT)
    )
    tiny_configs.assert_relative(found[:2], expected[:2], 1e-6)
    tiny_configs.assert_relative(found[2:], expected[2:], 2**-8)


def test_rows_that_do_not_divide_have_a_value_but_no_gradient():
    with jax.enable_x64():
        inputs = _inputs(batch=6)
        with jax.set_mesh(_mesh((2, 2, 1, 2))):
            np.testing.assert_allclose(
                jax.jit(cross_entropy)(*inputs), _plain(*inputs), rtol=1e-12
            )
            with pytest.raises(
                ValueError,
                match=r"^6 rows do not divide over 4 devices: take a multiple",
            ):
                jax.jit(jax.grad(cross_entropy))(*inputs)


def test_there_is_no_gradient_for_the_weights():
    inputs = _inputs(np.float32)
    np.testing.assert_array_equal(jax.grad(cross_entropy, 3)(*inputs), np.zeros((B, T)))


def test_all_logits_are_never_there_at_once():
    """By the shapes in the program and by the memory that it takes beyond its arguments."""
    shapes = (2, 4096, 64), (64, 50304), (2, 4096), (2, 4096)
    dtypes = jnp.bfloat16, jnp.float32, jnp.int32, jnp.float32
    inputs = [
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in zip(shapes, dtypes, strict=True)
    ]

    def plain(h_BTD, head_DV, targets_BT, weights_BT):
        return _plain(h_BTD.astype(jnp.float32), head_DV, targets_BT, weights_BT)

    temporaries, largest = [], []
    for function in (plain, cross_entropy):
        compiled = (
            jax.jit(jax.value_and_grad(function, (0, 1))).lower(*inputs).compile()
        )
        memory = compiled.memory_analysis()
        assert memory
        temporaries.append(memory.temp_size_in_bytes)
        arrays = re.findall(
            r"(?:f32|bf16|pred|s32)\[([\d,]+)\]", compiled.as_text() or ""
        )
        largest.append(
            max(np.prod([int(size) for size in array.split(",")]) for array in arrays)
        )
    print(
        f"\ntemporaries with all logits {temporaries[0] / 2**20:,.0f} MiB, "
        f"in chunks {temporaries[1] / 2**20:,.0f} MiB"
    )
    assert largest[0] == 2 * 4096 * 50304
    assert largest[1] <= loss.LOGITS < largest[0]
    assert temporaries[1] <= temporaries[0] / 3
