"""The mixture of experts against loops and a dense dispatch, whatever the router does,
and on every kind of mesh.
"""

import dataclasses
import functools
import math
import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.ad_checkpoint import print_saved_residuals

from sparsecod_jax import config
from sparsecod_jax.model.grouped_matmul import grouped_matmul
from sparsecod_jax.model.moe import MixtureOfExperts
from sparsecod_jax.model.transformer import REMAT_POLICIES
from sparsecod_jax.parallel.sharding import batch_sharding, make_mesh, tree_shardings
from tests.support import tiny_configs

MODEL = dataclasses.replace(
    tiny_configs.MODEL, d_model=16, d_ff=24, n_experts=8, top_k=2
)
WIDE = {"compute_dtype": "float64", "residual_dtype": "float64"}
CASES = {
    "no shared expert": {},
    "shared expert": {"shared_expert": True, "d_shared": 40},
    "normalised gates": {"normalize_gates": True},
    "one expert a token": {"top_k": 1},
    "all experts": {"top_k": 4},
    "a single expert": {"n_experts": 1, "top_k": 1},
}
PREFERENCES = {  # added to the logits of the eight experts
    "ordinary": [0] * 8,
    "unbalanced": [5, 4, 3, 0, 0, 0, -1, -1],
    "an idle expert": [0, 0, 0, -50, 0, 0, 0, 0],
    "all to two experts": [9, 9, 0, 0, 0, 0, 0, 0],
}
ALL_TO_ONE = [0, 0, 0, 0, 0, 9, 0, 0]
ROUTERS = {  # changes, positions, what is added to the logits
    "two experts a token": ({"shared_expert": True, "d_shared": 8}, 8, PREFERENCES),
    "all tokens to one expert": ({"top_k": 1}, 7, {"all to one": ALL_TO_ONE}),
}
MESHES = [(1, 1, 8, 1), (2, 1, 4, 1), (2, 1, 2, 2), (1, 2, 2, 2), (1, 4, 2, 1)]


def _boxed(cfg):
    return jax.eval_shape(
        MixtureOfExperts(cfg).init, jax.random.key(0), jnp.zeros((1, 1, cfg.d_model))
    )["params"]


def _setting(cfg, preferences=(0,), shape=(2, 11), dtype: type = np.float32):
    """Parameters, an input whose first entry is 1, and the gradient of the output."""
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: (
            rng.normal(size=leaf.shape).astype(dtype) / math.sqrt(leaf.shape[-2])
        ),
        nn.unbox(_boxed(cfg)),
    )
    x, weights = (
        rng.normal(size=(*shape, cfg.d_model)).astype(dtype) for _ in range(2)
    )
    x[..., 0] = 1
    params["router"][0] += preferences
    return params, x, weights


def _graded(layer):
    """The layer's (output, load-balance loss, z-loss, rest) and the gradients of
    parameters and input, of all three together.
    """

    def loss(params, x, weights):
        y, balance, z, rest = layer(params, x)
        return jnp.sum(weights * y) + 3 * balance + 0.1 * z, (y, balance, z, rest)

    def graded(*setting):
        (_, out), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(
            *setting
        )
        return out[:3], gradients, out[3]

    return jax.jit(graded)


@functools.cache
def _ours(cfg):
    def layer(params, x):
        y, stats = MixtureOfExperts(cfg).apply({"params": params}, x)
        return (
            y,
            stats["router/load_balance_loss"],
            stats["router/z_loss"],
            (stats["router/counts"], stats["router/dropped"]),
        )

    return _graded(layer)


def _swiglu(x, gate, up, down):
    hidden = x @ gate
    return (hidden / (1 + jnp.exp(-hidden)) * (x @ up)) @ down


def _looped(cfg):
    """A loop over experts, each applied to all tokens and multiplied by the gate, which
    is 0 where it was not chosen.
    """

    def layer(params, x):
        logits = x @ params["router"]
        odds = jnp.exp(logits)
        probabilities = odds / odds.sum(-1, keepdims=True)
        ranks = jnp.argsort(jnp.argsort(-probabilities, axis=-1), axis=-1)
        gates = jnp.where(ranks < cfg.top_k, probabilities, 0)
        if cfg.normalize_gates:
            gates = gates / gates.sum(-1, keepdims=True)
        y, balance, counts = jnp.zeros(x.shape, x.dtype), 0.0, []
        for e in range(cfg.n_experts):
            y += gates[..., e, None] * _swiglu(
                x, params["gate"][e], params["up"][e], params["down"][e]
            )
            counts.append((ranks[..., e] < cfg.top_k).sum())
            balance += (
                cfg.n_experts
                * counts[e]
                / (ranks[..., e].size * cfg.top_k)
                * probabilities[..., e].mean()
            )
        if cfg.shared_expert:
            shared = _swiglu(
                x, *(params["shared"][name] for name in ("gate", "up", "down"))
            )
            y = shared / (cfg.top_k + 1) + cfg.top_k / (cfg.top_k + 1) * y
        return y, balance, (jnp.log(odds.sum(-1)) ** 2).mean(), (jnp.stack(counts), 0)

    return _graded(layer)


def _dispatched(cfg):
    """One-hot dispatch and combine: all tokens are copied to all slots of all experts by einsum."""

    def layer(params, x):
        logits = x @ params["router"]
        probabilities = jax.nn.softmax(logits)
        gates, chosen = jax.lax.top_k(probabilities, cfg.top_k)
        if cfg.normalize_gates:
            gates = gates / gates.sum(-1, keepdims=True)
        dispatch = jax.nn.one_hot(chosen, cfg.n_experts, dtype=x.dtype)
        sent = jnp.einsum("btse,btd->ebtsd", dispatch, x)
        hidden = jax.nn.silu(
            jnp.einsum("ebtsd,edf->ebtsf", sent, params["gate"])
        ) * jnp.einsum("ebtsd,edf->ebtsf", sent, params["up"])
        y = jnp.einsum(
            "ebtsf,efd,btse,bts->btd", hidden, params["down"], dispatch, gates
        )
        if cfg.shared_expert:
            y = (
                _swiglu(x, *(params["shared"][name] for name in ("gate", "up", "down")))
                + cfg.top_k * y
            ) / (cfg.top_k + 1)
        counts = dispatch.sum((0, 1, 2))
        balance = (
            cfg.n_experts * (counts / counts.sum() * probabilities.mean((0, 1))).sum()
        )
        return y, balance, (jax.nn.logsumexp(logits, axis=-1) ** 2).mean(), (counts, 0)

    return _graded(layer)


@pytest.mark.parametrize("change", CASES.values(), ids=CASES)
def test_output_losses_and_all_gradients_equal_a_loop_and_a_dense_dispatch(change):
    cfg = dataclasses.replace(MODEL, **WIDE, **{"n_experts": 4} | change)
    with jax.enable_x64():
        setting = _setting(cfg, dtype=np.float64)
        actual = _ours(cfg)(*setting)
        assert actual[0][0].dtype == jnp.float64
        tiny_configs.assert_relative(actual, _looped(cfg)(*setting), 1e-10)
        tiny_configs.assert_relative(actual, _dispatched(cfg)(*setting), 1e-10)


def test_matrices_side_by_side_give_the_same(monkeypatch):
    """As on Hopper, but by the products of this platform."""
    setting = _setting(MODEL)
    expected = _ours(MODEL)(*setting)
    monkeypatch.setattr(
        "sparsecod_jax.model.moe.hopper", mock.Mock(is_served=lambda x_RD: True)
    )
    layer = _ours.__wrapped__(MODEL)
    assert f"f32[8,16,{2 * MODEL.d_ff}]" in str(jax.make_jaxpr(layer)(*setting))
    tiny_configs.assert_relative(layer(*setting), expected, 1e-6)


@pytest.mark.parametrize(
    ("top_k", "preferences", "idle"),
    [(2, PREFERENCES["an idle expert"], [3]), (1, ALL_TO_ONE, [0, 1, 2, 3, 4, 6, 7])],
    ids=["an idle expert", "all tokens on one expert"],
)
def test_an_expert_without_a_token_has_no_gradient_and_no_token_is_dropped(
    top_k, preferences, idle
):
    cfg = dataclasses.replace(MODEL, top_k=top_k, **WIDE)
    with jax.enable_x64():
        setting = _setting(cfg, preferences, shape=(4, 40), dtype=np.float64)
        actual = _ours(cfg)(*setting)
        tiny_configs.assert_relative(actual, _looped(cfg)(*setting), 1e-10)
        _, (gradients, _), (counts, dropped) = actual
        assert np.flatnonzero(counts == 0).tolist() == idle
        assert dropped == 0
        for name in ("gate", "up", "down"):
            assert (
                np.flatnonzero(np.all(gradients[name] == 0, axis=(1, 2))).tolist()
                == idle
            )


def _mesh(sizes):
    return make_mesh(config.Mesh(*sizes), jax.devices()[: math.prod(sizes)])


def _place(mesh, cfg, params, *rest):
    """The parameters where the table of axes puts them, and the rest, which has the
    rows of a batch, over all but tensor partners.
    """
    return (
        jax.device_put(params, tree_shardings(mesh, _boxed(cfg))),
        *jax.device_put(rest, batch_sharding(mesh)),
    )


@pytest.mark.parametrize("sizes", MESHES, ids=str)
@pytest.mark.parametrize(
    ("change", "length", "preferences"), ROUTERS.values(), ids=ROUTERS
)
def test_on_a_mesh_as_without_whatever_the_router_does(
    sizes, change, length, preferences
):
    cfg, mesh = dataclasses.replace(MODEL, **change), _mesh(sizes)
    for added in preferences.values():
        setting = _setting(cfg, added, shape=(8, length))
        expected = _ours(cfg)(*setting)
        with jax.set_mesh(mesh):
            actual = _ours(cfg)(*_place(mesh, cfg, *setting))
        tiny_configs.assert_relative(actual, expected, 1e-5)
        assert actual[2][1] == 0


def test_a_batch_that_does_not_divide_the_mesh_is_computed_all_the_same():
    setting = _setting(MODEL, shape=(1, 6))
    expected = _ours(MODEL)(*setting)
    with jax.set_mesh(_mesh((2, 1, 2, 2))):
        actual = _ours(MODEL)(*setting)
    tiny_configs.assert_relative(actual[:2], expected[:2], 1e-5)
    np.testing.assert_array_equal(actual[2][0], expected[2][0])


def test_no_token_counts_as_dropped_when_the_batch_does_not_divide_the_mesh():
    params, x, _ = _setting(MODEL, shape=(1, 6))
    with jax.set_mesh(_mesh((1, 1, 4, 1))):
        assert (
            jax.jit(MixtureOfExperts(MODEL).apply)({"params": params}, x)[1][
                "router/dropped"
            ]
            == 0
        )


@pytest.mark.parametrize(
    ("sizes", "all_grouped"),
    [((1, 1, 1, 1), True), ((2, 2, 1, 2), True), ((1, 1, 4, 1), False)],
)
def test_rows_are_taken_to_be_in_groups_only_where_all_experts_are(sizes, all_grouped):
    """A kernel may leave other rows uninitialised, which none of a CPU does."""
    setting = _setting(MODEL, shape=(8, 6))
    with (
        jax.set_mesh(_mesh(sizes)),
        mock.patch(
            "sparsecod_jax.model.moe.grouped_matmul", wraps=grouped_matmul
        ) as multiply,
    ):
        jax.make_jaxpr(_ours(MODEL))(*setting)
    assert {call.args[3] for call in multiply.call_args_list} == {all_grouped}


def _exchanges(sizes):
    """Which exchanges the compiled layer makes on a mesh."""
    mesh = _mesh(sizes)
    params, x, _ = _place(mesh, MODEL, *_setting(MODEL, shape=(8, 6)))
    with jax.set_mesh(mesh):
        text = (
            jax.jit(MixtureOfExperts(MODEL).apply)
            .lower({"params": params}, x)
            .compile()
            .as_text()
        )
    assert text
    return set(
        re.findall(r" (all-gather|reduce-scatter|all-to-all)(?:-start)?\(", text)
    )


def test_tokens_are_exchanged_when_devices_share_out_the_experts():
    assert _exchanges((1, 1, 4, 1)) == {"all-gather", "reduce-scatter"}
    assert _exchanges((1, 1, 1, 1)) == set()


def test_nothing_is_exchanged_when_every_device_holds_all_experts():
    assert _exchanges((8, 1, 1, 1)) == set()


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_each_device_holds_its_share_of_the_experts(sizes):
    mesh = _mesh(sizes)
    _, fsdp, expert, tensor = sizes
    (placed,) = _place(mesh, MODEL, _setting(MODEL)[0])
    inward = (8 // expert, 16 // fsdp, 24 // tensor)
    shapes = {
        "gate": inward,
        "up": inward,
        "down": (8 // expert, 24 // tensor, 16 // fsdp),
        "router": (16 // (fsdp * expert), 8),
    }
    assert {
        name: {shard.data.shape for shard in leaf.addressable_shards}
        for name, leaf in placed.items()
    } == {name: {shape} for name, shape in shapes.items()}
    experts = {
        shard.device: range(8)[shard.index[0]]
        for shard in placed["up"].addressable_shards
    }
    for position, device in np.ndenumerate(mesh.devices):
        assert experts[device].start == position[2] * 8 // expert


@pytest.mark.parametrize(("policy", "kept"), [("full", 0), ("dots", 3)])
def test_the_experts_products_are_computed_once_where_products_are_kept(
    policy, kept, capsys
):
    module = MixtureOfExperts(tiny_configs.MIXTURE)
    x_BTD = jax.random.normal(jax.random.key(0), (2, 8, tiny_configs.MIXTURE.d_model))
    params = nn.unbox(module.init(jax.random.key(1), x_BTD))
    layer = jax.checkpoint(
        lambda params, x_BTD: module.apply(params, x_BTD)[0].sum(),
        policy=REMAT_POLICIES[policy],
    )  # pyright: ignore[reportIndexIssue]
    print_saved_residuals(layer, params, x_BTD)
    assert capsys.readouterr().out.count("'product'") == kept
