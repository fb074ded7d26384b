"""Sizes against the published ones and against the parameters that Flax makes."""

import dataclasses
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from sparsecod_jax import config
from sparsecod_jax.config import counts
from sparsecod_jax.config.load import load_experiment
from sparsecod_jax.model.transformer import Transformer
from tests.support import tiny_configs

ROOT = Path(__file__).resolve().parents[2]

# adamw-1B of the published study; with 16 blocks its totals are known to the last digit.
DENSE_1B = config.Model(
    d_model=2048, n_layers=16, n_heads=16, d_ff=8192, vocab_size=50304
)
DENSE_400M = config.Model(
    d_model=1536, n_layers=16, n_heads=12, d_ff=2304, vocab_size=50304
)


def test_published_totals():
    assert counts.parameters(DENSE_1B) == counts.Counts(
        1_279_854_592, 1_176_832_000, 1_279_854_592
    )
    assert counts.parameters(DENSE_400M) == counts.Counts(
        475_448_832, 398_181_888, 475_448_832
    )


MIXTURES = {
    "olmoe-400M-2B": (
        config.Model(
            d_model=768,
            n_heads=12,
            d_ff=1536,
            n_experts=32,
            top_k=4,
            shared_expert=True,
            d_shared=1536,
        ),
        (1_983_996_672, 1_945_363_200, 398_549_760),
    ),
    "olmoe-1B-7B": (
        config.Model(d_ff=2048, n_experts=64, top_k=8),
        (13_361_547_264, 13_258_524_672, 2_087_258_112),
    ),
    "ablation": (
        config.Model(
            d_model=1120, n_layers=32, n_heads=16, d_ff=1120, n_experts=64, top_k=8
        ),
        (7_982_644_320, 7_926_303_840, 1_238_989_920),
    ),
}


@pytest.mark.parametrize(("model", "published"), MIXTURES.values(), ids=MIXTURES)
def test_published_mixtures(model, published):
    assert counts.parameters(model) == counts.Counts(*published)


def _model(spec):
    return load_experiment(str(ROOT / "configs" / spec)).model


def test_the_larger_mixture_has_the_sizes_of_its_name_and_of_its_dense_partner():
    found, dense = (
        counts.parameters(_model("moe_1b_7b.py:paper")),
        counts.parameters(_model("dense_1b.py:paper")),
    )
    assert (round(found.total / 1e9, 2), round(found.activated / 1e9, 2)) == (
        6.92,
        1.28,
    )
    assert found.activated == pytest.approx(dense.activated, rel=0.01)


@pytest.mark.parametrize("scale", ["nano", "mini"])
def test_the_smaller_mixture_activates_as_much_as_its_dense_partner(scale):
    mixture, dense = (
        _model(f"{name}.py:{scale}") for name in ("moe_400m_2b", "dense_400m")
    )
    sizes = [
        counts.parameters(model).activated - model.vocab_size * model.d_model
        for model in (mixture, dense)
    ]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)


@pytest.mark.parametrize(
    ("depth", "total", "without"),
    [(12, 1.011, 0.908), (16, 1.280, 1.177), (24, 1.817, 1.714), (32, 2.354, 2.251)],
)
def test_published_depths(depth, total, without):
    found = counts.parameters(dataclasses.replace(DENSE_1B, n_layers=depth))
    assert (
        round(found.total / 1e9, 3),
        round(found.without_input_embedding / 1e9, 3),
    ) == (total, without)


@pytest.mark.parametrize(
    ("group", "total"), [(1, 1.280), (2, 1.213), (4, 1.179), (16, 1.154)]
)
def test_published_head_groups(group, total):
    found = counts.parameters(dataclasses.replace(DENSE_1B, n_kv_heads=16 // group))
    assert round(found.total / 1e9, 3) == total


VARIANTS = {
    "grouped": {},
    "multi-head": {"n_kv_heads": 4},
    "multi-query": {"n_kv_heads": 1},
    "own head size": {"head_dim": 6},
    "one block": {"n_layers": 1},
    "other width": {"d_model": 40, "d_ff": 56, "vocab_size": 77},
    "layer norm scaling": {"layer_norm_scaling": True},
    "mixture": {"n_experts": 6, "top_k": 2},
    "mixture of all": {"n_experts": 6, "top_k": 6},
    "mixture, normalised": {"n_experts": 6, "top_k": 2, "normalize_gates": True},
    "mixture, shared": {
        "n_experts": 6,
        "top_k": 2,
        "shared_expert": True,
        "d_shared": 20,
    },
}


@pytest.mark.parametrize("change", VARIANTS.values(), ids=VARIANTS)
def test_counts_what_flax_makes(change):
    model = dataclasses.replace(tiny_configs.MODEL, **change)
    made = nn.unbox(
        jax.eval_shape(
            Transformer(model).init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32)
        )
    )["params"]
    found = counts.parameters(model)
    assert found.total == sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(made))
    assert found.without_input_embedding == found.total - math.prod(
        made["embedding"].shape
    )
    idle = (
        3
        * model.n_layers
        * (model.n_experts - model.top_k)
        * model.d_model
        * model.d_ff
    )
    assert found.activated == found.total - idle


def test_flops_by_hand():
    """A block: query and out 8x12 each, key and value 8x6 each, three of 8x10, two gains of 8.

    Then a gain of 8 and a head of 8x11.
    """
    model = config.Model(
        d_model=8,
        n_layers=3,
        n_heads=2,
        n_kv_heads=1,
        head_dim=6,
        d_ff=10,
        vocab_size=11,
    )
    assert counts.parameters(model) == counts.Counts(
        1728 + 88, 3 * (288 + 240 + 16) + 8 + 88, 1728 + 88
    )
    assert counts.flops_per_token(model, 5) == 6 * 1728 + 6 * 3 * 5 * 12
    assert (
        counts.flops_per_token(DENSE_1B, 1024)
        == 6 * 1_176_832_000 + 6 * 16 * 1024 * 2048
    )
    assert (
        counts.flops_per_token(DENSE_1B, 8192) - counts.flops_per_token(DENSE_1B, 0)
        == 6 * 16 * 8192 * 2048
    )


def test_flops_of_a_mixture_by_hand():
    """As above, with experts in place of the dense FFN.

    Five, of which two are activated, a router of 8x5 and a shared expert of three times 8x7.
    """
    sizes = {"n_experts": 5, "top_k": 2, "shared_expert": True, "d_shared": 7}
    model = config.Model(
        d_model=8,
        n_layers=3,
        n_heads=2,
        n_kv_heads=1,
        head_dim=6,
        d_ff=10,
        vocab_size=11,
        **sizes,
    )
    activated = 3 * (288 + 2 * 240 + 40 + 168 + 16) + 8 + 88
    assert counts.parameters(model) == counts.Counts(
        activated + 3 * 3 * 240 + 88, activated + 3 * 3 * 240, activated + 88
    )
    assert counts.flops_per_token(model, 5) == 6 * activated + 6 * 3 * 5 * 12
