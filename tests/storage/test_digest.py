"""Digests see every bit and every place, and nothing of the layout over devices."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from sparsecod_jax.storage.digest import digests

DTYPES = {
    "float32": "uint32",
    "bfloat16": "uint16",
    "int32": "uint32",
    "uint8": "uint8",
    "float64": "uint64",
}


def _array(dtype, shape, seed=0):
    """Random bits, read as `dtype`."""
    unsigned = np.dtype(DTYPES[dtype])
    bits = np.random.default_rng(seed).integers(
        0, np.iinfo(unsigned).max, shape, unsigned, endpoint=True
    )
    return bits.view(jnp.dtype(dtype))


def _digest(array):
    return digests({"x": array})["x"]


def _precision(dtype):
    return jax.enable_x64() if dtype == "float64" else contextlib.nullcontext()


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_flipped_bit_shows(dtype):
    array = _array(dtype, (6, 5, 7))
    rng = np.random.default_rng()
    with _precision(dtype):
        before = _digest(jnp.asarray(array))
        for _ in range(40):
            flipped = array.copy()
            bit = int(rng.integers(8 * array.nbytes))
            flipped.view(np.uint8).reshape(-1)[bit // 8] ^= np.uint8(1 << bit % 8)
            after = jnp.asarray(flipped)
            assert after.dtype == jnp.dtype(dtype)
            assert _digest(after) != before, f"bit {bit} of {dtype}"


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_moved_element_shows(dtype):
    array = np.arange(210).astype(jnp.dtype(dtype)).reshape(6, 5, 7)
    rng = np.random.default_rng()
    with _precision(dtype):
        before = _digest(jnp.asarray(array))
        for _ in range(20):
            moved = array.reshape(-1).copy()
            i, j = rng.choice(210, 2, replace=False)
            moved[[i, j]] = moved[[j, i]]
            after = _digest(jnp.asarray(moved.reshape(6, 5, 7)))
            assert after != before, f"elements {i} and {j}"
        for axis in range(3):
            assert _digest(jnp.asarray(np.flip(array, axis))) != before
            assert _digest(jnp.asarray(np.roll(array, 1, axis))) != before


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_the_layout_does_not_show(dtype):
    array = _array(dtype, (16, 24, 8))
    with _precision(dtype):
        expected = _digest(jnp.asarray(array))
        for devices in (1, 2, 4, 8):
            mesh = jax.make_mesh(
                (devices // 2 or 1, min(devices, 2)),
                ("a", "b"),
                devices=jax.devices()[:devices],
            )
            for layout in (P("a"), P(None, ("b", "a")), P("b", None, "a")):
                spread = jax.device_put(array, jax.sharding.NamedSharding(mesh, layout))
                assert _digest(spread) == expected, f"{layout} on {devices} devices"


def test_the_definition_stays():
    """Checkpoints hold digests: another definition would quarantine every older one.

    Computed by hand with Python integers.
    """
    integers = jnp.arange(12, dtype=jnp.int32).reshape(3, 4)
    assert _digest(integers) == [448646922, 1225632606]
    floats = jnp.linspace(-1, 1, 5, dtype=jnp.float32)
    assert _digest(floats) == [3087007744, 4110417920]
    assert _digest(jnp.float32(1.0)) == [1065353216, 813694976]


def test_each_digest_has_its_name():
    first, second = jnp.arange(6.0), jnp.arange(6.0) + 1
    found = digests({"a": first, "b": {"c": second}})
    assert found == {"a": _digest(first), "b/c": _digest(second)}
    assert found["a"] != found["b/c"]
