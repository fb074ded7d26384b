"""One training step of a mixture of experts.

Devices share out the experts; auxiliary losses act on the gradient and not on the loss.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparsecod_jax import config
from sparsecod_jax.model.loss import windows
from sparsecod_jax.model.router import auxiliary_loss
from sparsecod_jax.model.transformer import Transformer
from sparsecod_jax.train.step import Batch, build
from tests.support import stepping, tiny_configs

# Sizes that every axis divides.
WIDE = dataclasses.replace(
    tiny_configs.MIXTURE,
    d_model=128,
    d_ff=32,
    d_shared=64,
    n_heads=8,
    n_kv_heads=4,
    head_dim=16,
    vocab_size=512,
    n_layers=2,
)
EXACT = dataclasses.replace(
    tiny_configs.MIXTURE, n_layers=2, compute_dtype="float64", residual_dtype="float64"
)
LOAD, Z = "router/load_balance_loss", "router/z_loss"


@pytest.mark.parametrize(
    "sizes",
    [
        (1, 1, 2, 1),
        (1, 1, 4, 1),
        (1, 1, 8, 1),
        (2, 1, 2, 2),
        (1, 2, 2, 2),
        (1, 4, 2, 1),
    ],
)
def test_meshes_agree_and_share_out_the_experts(sizes):
    found, one = stepping.on_mesh(WIDE, *sizes), stepping.on_mesh(WIDE, 1, 1, 1, 1)
    tiny_configs.assert_relative(found.grads, one.grads, 1e-5)
    np.testing.assert_array_equal(found.metrics["router/dropped"], [0, 0])
    layered = [
        name
        for name in one.metrics
        if name.startswith(("router/", "variance/", "norm/"))
    ]
    assert {
        LOAD,
        Z,
        "router/max_load",
        "router/load_entropy",
        "router/dead_experts",
        "router/gate_sum",
    } <= set(layered)
    for name in ("loss", "auxiliary_loss", "grad_norm", *layered):
        np.testing.assert_allclose(
            found.metrics[name], one.metrics[name], rtol=1e-5, err_msg=name
        )
    data, fsdp, expert, tensor = sizes
    assert found.local_shapes["blocks"]["ffn"]["gate"] == (
        2,
        8 // expert,
        128 // fsdp,
        32 // tensor,
    )
    assert found.local_shapes["blocks"]["ffn"]["down"] == (
        2,
        8 // expert,
        32 // tensor,
        128 // fsdp,
    )
    assert found.state_bytes <= 1.02 * one.state_bytes * data / np.prod(sizes)
    assert found.temporary_bytes < 0.7 ** np.log2(np.prod(sizes)) * one.temporary_bytes


def test_the_loss_leaves_out_the_auxiliary_losses_which_are_a_metric():
    params, metrics, *_ = stepping.on_mesh(WIDE, 1, 1, 1, 1)
    weighted = 0.01 * np.mean(metrics[LOAD]) + 0.001 * np.mean(metrics[Z])
    np.testing.assert_allclose(metrics["auxiliary_loss"], weighted, rtol=1e-6)
    inputs, targets = windows(jnp.asarray(stepping.tokens(vocab=512)))
    logits, _ = jax.jit(Transformer(WIDE).apply)({"params": params}, inputs)
    np.testing.assert_allclose(
        metrics["loss"],
        optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean(),
        rtol=1e-6,
    )
    assert metrics["auxiliary_loss"] > 1e-3 * metrics["loss"]


def test_a_dense_model_has_no_metrics_of_a_router():
    experiment = tiny_configs.experiment(mesh=config.Mesh(1, 1, 1, 1))
    program = build(experiment, jax.devices()[:1])
    _, metrics = program.lower(with_moments=False).out_info
    assert "loss" in metrics
    assert not [
        name
        for name in metrics
        if name.startswith("router/") or name == "auxiliary_loss"
    ]
    assert auxiliary_loss(tiny_configs.MODEL, {}) == 0


def _compute(model, accumulation=1):
    execution = config.Execution(
        accumulation=accumulation, attention="reference", remat="none"
    )
    return stepping.gradients(tiny_configs.experiment(model=model, execution=execution))


def _weighted(model, load, z):
    return dataclasses.replace(model, load_balance_weight=load, router_z_weight=z)


def test_auxiliary_losses_weigh_the_same_in_every_block():
    model = _weighted(
        dataclasses.replace(tiny_configs.MIXTURE, n_layers=16), 0.01, 0.001
    )
    stats = {LOAD: jnp.linspace(1, 2, 16), Z: jnp.linspace(3, 9, 16)}
    gradient = jax.grad(lambda stats: auxiliary_loss(model, stats))(stats)
    np.testing.assert_allclose(gradient[LOAD], [0.01 / 16] * 16, rtol=1e-6)
    np.testing.assert_allclose(gradient[Z], [0.001 / 16] * 16, rtol=1e-6)


def _auxiliary(model, load, z):
    """The gradient of a batch's auxiliary losses, summed block by block; the statistics."""
    apply = Transformer(
        model, config.Kernels(attention="reference", remat="none")
    ).apply

    def total(params, tokens):
        _, stats = apply({"params": params}, tokens[:, :-1])
        return sum(
            (load * stats[LOAD][block] + z * stats[Z][block]) / model.n_layers
            for block in range(model.n_layers)
        ), stats

    return jax.jit(jax.grad(total, has_aux=True))


def test_what_the_weights_add_to_the_gradient_is_a_sum_over_blocks():
    with jax.enable_x64():
        deep = dataclasses.replace(EXACT, n_layers=16)
        params, batch = (
            tiny_configs.init(deep, dtype=jnp.float64),
            Batch(stepping.tokens()),
        )
        loss, grads, _ = _compute(_weighted(deep, 0.3, 0.02))(params, batch)
        plain_loss, plain, _ = _compute(_weighted(deep, 0.0, 0.0))(params, batch)
        expected, _ = _auxiliary(deep, 0.3, 0.02)(params, batch.tokens)
        added = jax.tree.map(jnp.subtract, grads, plain)
        assert all(
            np.linalg.norm(router) > 1e-4
            for router in expected["blocks"]["ffn"]["router"]
        )
        for part in ("blocks", "embedding"):
            tiny_configs.assert_relative(added[part], expected[part], 1e-7)
        assert np.abs(added["head"]).max() < 1e-12
        np.testing.assert_allclose(loss, plain_loss, rtol=1e-12)


def test_accumulation_averages_the_auxiliary_losses_of_microbatches():
    """Not so the others: the cross-entropy and the z-loss are sums over tokens.

    The load-balance loss of a batch is not the mean of those of its parts.
    """
    with jax.enable_x64():
        params = tiny_configs.init(EXACT, dtype=jnp.float64)
        batch = Batch(stepping.tokens())
        loss, grads, stats = _compute(_weighted(EXACT, 0.0, 0.0))(params, batch)
        loss_4, grads_4, stats_4 = _compute(_weighted(EXACT, 0.5, 0.0), accumulation=4)(
            params, batch
        )
        auxiliary = _auxiliary(EXACT, 0.5, 0.0)
        grads_M, stats_M = zip(
            *(auxiliary(params, batch.tokens[m::4]) for m in range(4)), strict=True
        )

        np.testing.assert_allclose(loss_4, loss, rtol=1e-12)
        np.testing.assert_array_equal(stats_4["router/counts"], stats["router/counts"])
        assert stats_4["router/counts"].sum(axis=-1).tolist() == [8 * 32 * 2] * 2
        np.testing.assert_allclose(stats_4[Z], stats[Z], rtol=1e-12)
        np.testing.assert_allclose(
            stats_4[LOAD],
            np.mean([stats[LOAD] for stats in stats_M], axis=0),
            rtol=1e-12,
        )
        assert np.abs(stats_4[LOAD] / stats[LOAD] - 1).min() > 1e-4
        tiny_configs.assert_relative(
            grads_4,
            jax.tree.map(
                lambda cross_entropy, *parts: cross_entropy + sum(parts) / 4,
                grads,
                *grads_M,
            ),
            1e-9,
        )
        routers = [tree["blocks"]["ffn"]["router"] for tree in (grads_4, grads)]
        assert np.linalg.norm(routers[0] - routers[1]) > 0.01 * np.linalg.norm(
            routers[1]
        )


def test_the_program_does_not_grow_with_depth():
    def loops(depth):
        experiment = tiny_configs.experiment(
            model=dataclasses.replace(tiny_configs.MIXTURE, n_layers=depth),
            mesh=config.Mesh(1, 1, 1, 1),
        )
        return (
            build(experiment, jax.devices()[:1])
            .lower(with_moments=False)
            .as_text()
            .count("stablehlo.while")
        )

    assert loops(2) == loops(9) > 2
