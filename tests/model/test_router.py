"""Where tokens go and what the routing losses are: published values, closed forms, and
which of them have a gradient.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsecod_jax.model.router import load_balance_loss, route

ROWS, COLUMNS = np.arange(6)[:, None], np.arange(4)[None]
# Logits [2, 3, 4] and, for the two best of four experts, what the reference's code gave for them.
LOGITS = (2 * np.sin(0.9 * ROWS + 1.7 * COLUMNS) + (COLUMNS == 0)).reshape(2, 3, 4)
EXPERTS = [[[1, 0], [0, 1], [0, 3]], [[3, 0], [3, 2], [2, 1]]]
COUNTS = [4, 3, 2, 3]
MEAN_PROBABILITIES = [0.4130128, 0.1650262, 0.2225678, 0.1993932]
LOAD_BALANCE, Z = 1.0634817, 6.7027493
PROBABILITIES = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)

_route = jax.jit(route, static_argnames=("top_k", "normalize"))


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    with jax.enable_x64(request.param == "float64"):
        yield request.param


def test_published_values(dtype):
    routing = _route(jnp.asarray(LOGITS, dtype), 2, normalize=False)
    np.testing.assert_array_equal(routing.experts_BTS, EXPERTS)
    np.testing.assert_array_equal(routing.stats["router/counts"], COUNTS)
    assert float(routing.stats["router/load_balance_loss"]) == pytest.approx(
        LOAD_BALANCE, rel=1e-6
    )
    assert float(routing.stats["router/z_loss"]) == pytest.approx(Z, rel=1e-6)
    assert {
        value.dtype for name, value in routing.stats.items() if name != "router/counts"
    } == {jnp.dtype(dtype)}


def test_published_mean_probabilities(dtype):
    """All tokens on one expert leave only its mean probability in the loss."""
    for e, expected in enumerate(MEAN_PROBABILITIES):
        loss = load_balance_loss(
            jax.nn.softmax(jnp.asarray(LOGITS, dtype)),
            12 * jax.nn.one_hot(e, 4, dtype=jnp.int32),
        )
        assert float(loss) / 4 == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("top_k", [1, 2, 4])
@pytest.mark.parametrize("normalize", [False, True], ids=["raw", "normalised"])
def test_gates_are_the_probabilities_of_the_chosen(top_k, normalize):
    with jax.enable_x64():
        routing = _route(LOGITS, top_k, normalize=normalize)
        expected = np.take_along_axis(
            PROBABILITIES, np.asarray(routing.experts_BTS), -1
        )
        if normalize:
            expected /= expected.sum(-1, keepdims=True)
            np.testing.assert_allclose(routing.gates_BTS.sum(-1), 1, rtol=1e-12)
        np.testing.assert_allclose(routing.gates_BTS, expected, rtol=1e-12)
        assert float(routing.stats["router/gate_sum"]) == pytest.approx(
            expected.sum(-1).mean(), rel=1e-12
        )
        assert float(routing.stats["router/gate_square_sum"]) == pytest.approx(
            (expected**2).sum(-1).mean(), rel=1e-12
        )


def _gradient(name, logits=LOGITS):
    return jax.jit(
        jax.grad(lambda logits: route(logits, 2, normalize=False).stats[name])
    )(logits)


def test_load_balance_gradient_takes_the_counts_as_given():
    def frozen(logits):
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        return 4 * (np.array(COUNTS) / 12 * p.mean((0, 1))).sum()

    expected = np.empty(LOGITS.shape)
    for at in np.ndindex(LOGITS.shape):
        step = np.zeros(LOGITS.shape)
        step[at] = 1e-5
        expected[at] = (frozen(LOGITS + step) - frozen(LOGITS - step)) / 2e-5
    with jax.enable_x64():
        np.testing.assert_allclose(
            _gradient("router/load_balance_loss"), expected, rtol=0, atol=1e-10
        )
    assert np.abs(expected).max() > 1e-2


def test_z_gradient():
    with jax.enable_x64():
        expected = 2 / 6 * np.log(np.exp(LOGITS).sum(-1, keepdims=True)) * PROBABILITIES
        np.testing.assert_allclose(_gradient("router/z_loss"), expected, rtol=1e-12)


@pytest.mark.parametrize("name", ["router/gate_sum", "router/gate_square_sum"])
def test_measured_gates_have_no_gradient(name):
    np.testing.assert_array_equal(_gradient(name, LOGITS.astype(np.float32)), 0)


@pytest.mark.parametrize("top_k", [1, 3, 8])
def test_load_balance_of_a_uniform_router_is_1(top_k):
    stats = _route(jnp.zeros((2, 5, 8)), top_k, normalize=False).stats
    assert float(stats["router/load_balance_loss"]) == pytest.approx(1, rel=1e-6)
    assert float(stats["router/z_loss"]) == pytest.approx(np.log(8) ** 2, rel=1e-6)


def test_load_balance_of_a_collapsed_router_is_the_number_of_experts():
    collapsed = jnp.broadcast_to(50.0 * jax.nn.one_hot(3, 8), (2, 5, 8))
    assert float(
        _route(collapsed, 1, normalize=False).stats["router/load_balance_loss"]
    ) == pytest.approx(8, rel=1e-6)
