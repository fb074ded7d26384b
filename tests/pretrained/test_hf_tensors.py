"""The table of tensors covers a model once, and goes both ways without losing a bit."""

import dataclasses
from collections import Counter

import jax
import numpy as np
import pytest

from sparsecod_jax.pretrained.hf_tensors import Tensor, tensors, to_ours, to_theirs
from sparsecod_jax.tree import names
from tests.support import tiny_configs


@pytest.mark.parametrize(
    "model",
    [
        tiny_configs.MODEL,
        tiny_configs.MIXTURE,
        dataclasses.replace(
            tiny_configs.MIXTURE, shared_expert=False, d_shared=0, d_ff=19
        ),
    ],
)
def test_every_value_has_one_place(model):
    sizes = dict.fromkeys(names(tree := tiny_configs.init(model)), 0)
    for tensor in tensors(model):
        if tensor.path:
            sizes[tensor.path] += int(np.prod(tensor.used or tensor.shape))
    assert sizes == {
        name: leaf.size
        for name, leaf in zip(names(tree), jax.tree.leaves(tree), strict=True)
    }
    assert max(Counter(tensor.name for tensor in tensors(model)).values()) == 1
    assert (
        max(
            Counter(
                (tensor.path, tensor.part) for tensor in tensors(model) if tensor.path
            ).values()
        )
        == 1
    )


@pytest.mark.parametrize(
    "factor",
    [k / (k + 1) for k in (1, 2, 4, 6, 8)] + [2 / (k + 1) for k in (2, 4, 6, 8)],
)
def test_folded_factors_are_undone_exactly(factor):
    """So that exporting again gives the same bytes.

    Ours need not come back, as several of them may give the same value.
    """
    ours = np.random.default_rng(0).standard_normal((300, 200)).astype(np.float32)
    tensor = Tensor("down", (200, 300), "blocks/ffn/down", (0,), factor=factor)
    theirs = to_theirs(tensor, ours)
    assert theirs.dtype == np.float32
    back = to_ours(tensor, theirs, ours.shape)
    np.testing.assert_array_equal(to_theirs(tensor, back), theirs)
    np.testing.assert_allclose(back, ours, rtol=3e-7)
