"""The attention kernel for TPU against the definition, run by Pallas's interpreter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsecod_jax import config
from sparsecod_jax.model.attention import attend, reference_attention
from sparsecod_jax.model.splash import splash_attention
from sparsecod_jax.parallel.sharding import make_mesh
from tests.support import tiny_configs

CASES = {  # B, T, H, J, K, whether there are segments, mesh
    "multi-head, head size 70": (2, 100, 4, 4, 70, False, (1, 1, 1, 1)),
    "grouped, segments": (2, 256, 4, 2, 16, True, (1, 1, 1, 1)),
    "multi-query, segments across blocks": (1, 300, 4, 1, 64, True, (1, 1, 1, 1)),
    "several blocks": (1, 640, 2, 1, 8, False, (1, 1, 1, 1)),
    "tensor divides the key heads": (4, 100, 4, 2, 16, True, (1, 2, 1, 2)),
    "tensor does not divide the key heads": (2, 100, 4, 1, 16, True, (1, 2, 1, 2)),
    "three key heads over two devices": (2, 60, 6, 3, 16, False, (1, 1, 1, 2)),
    "rows that do not divide": (3, 60, 4, 2, 16, True, (1, 2, 1, 2)),
}


@pytest.mark.parametrize(
    ("B", "T", "H", "J", "K", "segmented", "sizes"), CASES.values(), ids=CASES
)
def test_equals_the_definition(B, T, H, J, K, segmented, sizes):
    """Value, and gradients of queries, keys and values."""
    rng = np.random.default_rng(0)
    q, k, v = (
        jnp.asarray(rng.normal(size=(B, T, heads, K)), jnp.float32)
        for heads in (H, J, J)
    )
    segments = (
        jnp.asarray(np.sort(rng.integers(0, 3, (B, T)), axis=1), jnp.int32)
        if segmented
        else None
    )
    mask = (
        None
        if segments is None
        else (segments[:, :, None] == segments[:, None, :])[:, None]
    )

    def both_ways(attention):
        def weighted(q, k, v):
            out = attention(q, k, v)
            return jnp.sum(jnp.sin(out)), out

        (_, out), gradients = jax.jit(
            jax.value_and_grad(weighted, (0, 1, 2), has_aux=True)
        )(q, k, v)
        return out, gradients

    with jax.set_mesh(make_mesh(config.Mesh(*sizes), jax.devices()[: np.prod(sizes)])):
        found = both_ways(
            lambda q, k, v: splash_attention(q, k, v, segments, interpret=True)
        )
    tiny_configs.assert_relative(
        found, both_ways(lambda q, k, v: reference_attention(q, k, v, mask)), 2e-6
    )


def test_a_bfloat16_model_gets_bfloat16():
    q, k, v = (jnp.ones((1, 20, heads, 8), jnp.bfloat16) for heads in (4, 2, 2))
    out = jax.eval_shape(lambda q, k, v: attend(q, k, v, None, "splash"), q, k, v)
    assert (out.shape, out.dtype) == ((1, 20, 4, 8), jnp.bfloat16)
