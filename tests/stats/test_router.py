"""How evenly tokens spread over experts, against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsecod_jax.model.transformer import Transformer
from sparsecod_jax.stats.router import SUMMED, expert_load, summarise
from tests.support import tiny_configs

# Tokens of each expert, then the largest load over the mean, the entropy over its maximum, and
# the share of experts without a token.
COUNTS = {
    "uniform": ([5, 5, 5, 5], 1, 1, 0),
    "one dead": ([4, 0, 4, 4], 4 / 3, np.log(3) / np.log(4), 1 / 4),
    "all on one": ([0, 0, 12, 0], 4, 0, 3 / 4),
    "one expert": ([12], 1, 0, 0),
}


@pytest.mark.parametrize(
    ("counts", "largest", "entropy", "dead"), COUNTS.values(), ids=COUNTS
)
def test_known_loads(counts, largest, entropy, dead):
    measured = jax.jit(expert_load)(jnp.array([counts, counts], jnp.int32))
    expected = {
        "router/max_load": largest,
        "router/load_entropy": entropy,
        "router/dead_experts": dead,
    }
    assert set(measured) == set(expected)
    for name, value in expected.items():
        assert measured[name].dtype == jnp.float32
        np.testing.assert_allclose(
            measured[name], [value, value], rtol=1e-6, atol=1e-7, err_msg=name
        )


def test_every_layer_is_measured_by_itself():
    counts_LE = np.random.default_rng(0).integers(0, 9, (5, 7)) * (np.arange(7) != 2)
    share_LE = counts_LE / counts_LE.sum(-1, keepdims=True)
    measured = jax.jit(expert_load)(jnp.asarray(counts_LE, jnp.int32))
    np.testing.assert_allclose(
        measured["router/max_load"], counts_LE.max(-1) / counts_LE.mean(-1), rtol=1e-6
    )
    entropy = [
        -sum(share * np.log(share) for share in layer if share) / np.log(7)
        for layer in share_LE
    ]
    np.testing.assert_allclose(measured["router/load_entropy"], entropy, rtol=1e-6)
    np.testing.assert_allclose(
        measured["router/dead_experts"], (counts_LE == 0).sum(-1) / 7, rtol=1e-6
    )


def test_counts_are_replaced_by_the_load_and_the_rest_is_kept():
    stats = {
        "router/counts": jnp.array([[3, 1], [2, 2]]),
        "router/z_loss": jnp.array([0.5, 0.25]),
        "variance/residual": jnp.ones(2),
    }
    given = dict(stats)
    summary = summarise(stats)
    kept = {"router/z_loss", "variance/residual"}
    assert set(summary) == kept | {
        "router/max_load",
        "router/load_entropy",
        "router/dead_experts",
    }
    assert all(summary[name] is stats[name] for name in kept)
    np.testing.assert_allclose(summary["router/max_load"], [1.5, 1])
    assert stats == given


def test_a_dense_model_has_nothing_to_summarise():
    stats = {"variance/residual": jnp.ones(2)}
    assert summarise(stats) is stats


def test_all_counts_are_summed_over_microbatches():
    model = Transformer(tiny_configs.MIXTURE, with_moments=True)
    tokens = jnp.zeros((1, 8), jnp.int32)
    (_, stats), _ = jax.eval_shape(model.init_with_output, jax.random.key(0), tokens)
    counts = {name for name, value in stats.items() if value.dtype == jnp.int32}
    assert counts == set(SUMMED)
