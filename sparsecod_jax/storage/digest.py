"""Are these the same bits?

A digest of an array is two index-weighted sums modulo 2^32 over its bits. Sums do not depend on how the array is laid out over devices,
and odd weights make every single flipped bit visible. Orbax checks no array content, so checkpoints carry these.
"""

import jax
import jax.numpy as jnp
import numpy as np

_STRIDES = np.array(
    [0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35, 0x27D4EB2F, 0x165667B1], np.uint32
)
_UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}


def names(tree) -> list[str]:
    """A path such as params/blocks/ffn/up for each leaf, in the tree's order."""
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]


def digests(tree) -> dict[str, list[int]]:
    """Two unsigned 32-bit numbers for each array, by name; one array after the other, as a CPU needs twice its memory for that."""
    sums = [jax.device_get(_digest(leaf)) for leaf in jax.tree.leaves(tree)]
    return {
        name: [int(number) for number in pair]
        for name, pair in zip(names(tree), sums, strict=True)
    }


def array_digest(array: jax.Array) -> jax.Array:
    """Two unsigned 32-bit numbers, [2], also inside a compiled function."""
    bits = jax.lax.bitcast_convert_type(array, _UNSIGNED[array.dtype.itemsize]).astype(
        jnp.uint32
    )
    place = jnp.zeros(bits.shape, jnp.uint32)
    for axis in range(bits.ndim):
        place += jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * _STRIDES[axis]
    sums = [
        jnp.sum(bits * (_scramble(place + salt) | 1), dtype=jnp.uint32)
        for salt in (0, 0x632BE59B)
    ]
    return jnp.stack(sums)


def _scramble(x: jax.Array) -> jax.Array:
    """A bijective mixing of 32-bit words (the finaliser of MurmurHash3)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


_digest = jax.jit(array_digest)
