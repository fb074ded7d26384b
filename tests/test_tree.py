"""Names of leaves, and the cast to float32 or wider."""

import jax
import jax.numpy as jnp
import pytest
from flax import struct

from sparsecod_jax.tree import at_least_float32, names


def test_names_are_paths_in_the_order_of_the_leaves():
    @struct.dataclass
    class State:
        step: int
        params: dict

    tree = State(
        step=1, params={"head": 2, "blocks": {"ffn": {"up": 3}}, "chain": [4, (5, 6)]}
    )
    assert names(tree) == [
        "step",
        "params/blocks/ffn/up",
        "params/chain/0",
        "params/chain/1/0",
        "params/chain/1/1",
        "params/head",
    ]
    assert jax.tree.leaves(tree) == [1, 3, 4, 5, 6, 2]


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("bfloat16", "float32"),
        ("float16", "float32"),
        ("int32", "float32"),
        ("float32", "float32"),
        ("float64", "float64"),
    ],
)
def test_a_cast_is_to_float32_and_never_narrows(dtype, expected):
    with jax.enable_x64():
        assert at_least_float32(jnp.ones(3, dtype)).dtype == expected
