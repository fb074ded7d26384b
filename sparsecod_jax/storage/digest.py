"""Are these the same bits?

Digests of arrays: two index-weighted sums modulo 2^32 over an array's bits. Sums do not
depend on how the array is laid out over devices, and odd weights make every single
flipped bit visible. Orbax checks no array content, so checkpoints carry these.
"""

import jax
import jax.numpy as jnp
import numpy as np

from sparsecod_jax.tree import names

_STRIDES = np.array(
    [0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35, 0x27D4EB2F, 0x165667B1], np.uint32
)
_UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}


def digests(tree) -> dict[str, list[int]]:
    """Two unsigned 32-bit numbers for each array, by name."""
    values = {}
    for name, leaf in zip(names(tree), jax.tree.leaves(tree), strict=True):
        # One array after the other: a CPU needs twice an array's memory for this.
        pair = jax.device_get(_digest(leaf))
        values[name] = [int(number) for number in pair]
    return values


def array_digest(array: jax.Array) -> jax.Array:
    """Two unsigned 32-bit numbers, [2], also inside a compiled function."""
    unsigned = _UNSIGNED[array.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)
    # A number for each element that depends on its indices alone, not on the sharding.
    position = jnp.zeros(bits.shape, jnp.uint32)
    for axis in range(bits.ndim):
        index = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        position += index * _STRIDES[axis]
    sums = []
    for salt in (0, 0x632BE59B):
        # An odd weight is invertible modulo 2^32, so no change of a single element,
        # not even of its highest bit, is multiplied away.
        weight = _scramble(position + salt) | 1
        sums.append(jnp.sum(bits * weight, dtype=jnp.uint32))
    return jnp.stack(sums)


def _scramble(x: jax.Array) -> jax.Array:
    """A bijective mixing of 32-bit words (the finaliser of MurmurHash3)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


_digest = jax.jit(array_digest)
