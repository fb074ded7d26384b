"""One training step: meshes, accumulation, non-finite updates, the compiled program."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsecod_jax import config
from sparsecod_jax.train.step import Batch, build, train_step
from tests.support import stepping, tiny_configs

MESHES = {
    "one": (1, 1, 1, 1),
    "data": (8, 1, 1, 1),
    "fsdp": (1, 8, 1, 1),
    "mixed": (2, 2, 1, 2),
}
# Sizes that every axis divides. The norm gains, which stay replicated, are small beside
# the rest.
WIDE = dataclasses.replace(
    tiny_configs.MODEL,
    d_model=128,
    d_ff=256,
    n_heads=8,
    n_kv_heads=4,
    head_dim=16,
    vocab_size=512,
    n_layers=2,
)


def _on_mesh(name):
    return stepping.on_mesh(WIDE, *MESHES[name])


@pytest.mark.parametrize("name", ["data", "fsdp", "mixed"])
def test_meshes_agree(name):
    metrics, one_metrics = _on_mesh(name).metrics, _on_mesh("one").metrics
    tiny_configs.assert_relative(_on_mesh(name).grads, _on_mesh("one").grads, 1e-5)
    assert metrics["batch_digest"] == one_metrics["batch_digest"]
    for key in (
        "loss",
        "variance/residual",
        "variance/attention",
        "norm/ffn",
        "cosine/update",
        "norm/gradient",
    ):
        np.testing.assert_allclose(
            metrics[key], one_metrics[key], rtol=1e-5, atol=1e-6, err_msg=key
        )


def test_moments_agree_on_a_mesh():
    results = []
    for sizes in ((1, 1, 1, 1), (2, 2, 1, 2)):
        experiment = tiny_configs.experiment(mesh=config.Mesh(*sizes))
        program = build(experiment, jax.devices()[: np.prod(sizes)])
        batch = Batch(
            jax.device_put(stepping.tokens(), program.abstract_batch.tokens.sharding)
        )
        results.append(
            program.lower(with_moments=True).compile()(program.init(), batch)[1]
        )
    one, mixed = (
        {name: value for name, value in metrics.items() if "/" in name}
        for metrics in results
    )
    assert "moments/ffn/kurtosis" in one
    assert "variance_median/residual" in one
    for name, value in one.items():
        np.testing.assert_allclose(
            mixed[name], value, rtol=2e-4, atol=1e-4, err_msg=name
        )


@pytest.mark.parametrize("name", ["fsdp", "mixed"])
def test_state_is_spread_over_the_devices(name):
    _, fsdp, _, tensor = MESHES[name]
    whole = _on_mesh("one").state_bytes
    assert _on_mesh(name).state_bytes <= 1.15 * whole / (fsdp * tensor)


def test_collectives_are_the_expected_ones():
    def kinds(name):
        return set(
            re.findall(
                r"(all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)",
                _on_mesh(name).text,
            )
        )

    assert kinds("one") == set()
    # Gradients and statistics; parameters are never moved.
    assert kinds("data") == {"all-reduce"}
    assert "all-gather" in kinds("fsdp")  # parameters, where they are used
    assert "all-gather" in kinds("mixed")
    assert "all-reduce" in kinds("mixed")  # partial sums of tensor parallelism


def test_accumulation_changes_nothing():
    with jax.enable_x64():
        model = dataclasses.replace(
            tiny_configs.MODEL, compute_dtype="float64", residual_dtype="float64"
        )
        params = tiny_configs.init(model, dtype=jnp.float64)
        batch = Batch(stepping.tokens())
        results = []
        for accumulation in (1, 4):
            experiment = tiny_configs.experiment(
                model=model,
                execution={"accumulation": accumulation, "attention": "reference"},
            )
            results.append(stepping.gradients(experiment)(params, batch))
        (loss, grads, stats), (loss_4, grads_4, stats_4) = results
        np.testing.assert_allclose(loss_4, loss, rtol=1e-12)
        tiny_configs.assert_relative(grads_4, grads, 1e-6)
        tiny_configs.assert_relative(stats_4, stats, 1e-12)


def test_an_update_that_is_not_finite_is_skipped_and_counted():
    experiment = tiny_configs.experiment(mesh=config.Mesh(1, 1, 1, 1))
    program = build(experiment, jax.devices()[:1])
    step = jax.jit(
        functools.partial(train_step, experiment, program.layout, None, False)
    )
    state, batch = program.init(), Batch(stepping.tokens())
    poisoned = state.replace(
        params=state.params | {"head": state.params["head"].at[0, 0].set(jnp.nan)}
    )
    after, metrics = step(poisoned, batch)
    assert not np.isfinite(metrics["loss"])
    assert int(after.step) == 1
    assert int(after.skipped) == int(metrics["skipped_updates"]) == 1
    same_params = jax.tree.map(
        functools.partial(np.array_equal, equal_nan=True), after.params, poisoned.params
    )
    assert jax.tree.all(same_params)
    same_moments = jax.tree.map(np.array_equal, after.opt_state, poisoned.opt_state)
    assert jax.tree.all(same_moments)
    healthy, metrics = step(after.replace(params=state.params), batch)
    assert (int(healthy.step), int(healthy.skipped)) == (2, 1)
    assert not np.array_equal(healthy.params["head"], state.params["head"])


def test_gradient_norms_are_those_of_each_block():
    experiment, params = (
        tiny_configs.experiment(mesh=config.Mesh(1, 1, 1, 1)),
        tiny_configs.init(tiny_configs.MODEL),
    )
    program = build(experiment, jax.devices()[:1])
    _, grads, _ = stepping.gradients(experiment)(params, Batch(stepping.tokens()))
    _, metrics = jax.jit(
        functools.partial(train_step, experiment, program.layout, None, False)
    )(program.init().replace(params=params), Batch(stepping.tokens()))
    for name, tree in (("norm/gradient", grads), ("norm/parameter", params)):
        leaves = [
            np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree["blocks"])
        ]
        expected = [
            np.sqrt(sum((leaf[layer] ** 2).sum() for leaf in leaves))
            for layer in range(3)
        ]
        np.testing.assert_allclose(metrics[name], expected, rtol=1e-5)


def test_the_program_does_not_grow_with_depth():
    def loops(depth):
        experiment = tiny_configs.experiment(
            model={"n_layers": depth}, mesh=config.Mesh(1, 1, 1, 1)
        )
        return (
            build(experiment, jax.devices()[:1])
            .lower(with_moments=False)
            .as_text()
            .count("stablehlo.while")
        )

    assert loops(2) == loops(9) == 3  # forward, backward, and the chunks of the loss
