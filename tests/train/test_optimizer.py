"""Schedules against golden values, AdamW against torch, and the decayed set."""

import collections
import dataclasses

import jax
import numpy as np
import pytest

from sparsecod_jax import config
from sparsecod_jax.config.identity import identity, identity_fields
from sparsecod_jax.train.optimizer import (
    decay_mask,
    group_of,
    learning_rate,
    make_optimizer,
)
from sparsecod_jax.tree import names
from tests.support import tiny_configs

GOLDEN = {
    1: 8e-8,
    2500: 2e-4,
    4999: 3.9992e-4,
    5000: 4e-4,
    12037: 2.2e-4,
    19073: 4e-5,
    19074: 4e-5,
    30000: 4e-5,
}


@pytest.mark.parametrize(("step", "expected"), GOLDEN.items())
def test_cosine_meets_the_golden_values(step, expected):
    experiment = config.Experiment(
        steps=19074,
        optimizer=config.Optimizer(peak_lr=4e-4),
        schedule=config.Schedule(warmup_steps=5000),
    )
    # optax computes in float32.
    found = float(learning_rate(experiment, step))
    assert found == pytest.approx(expected, rel=2e-5, abs=1e-10)


@pytest.mark.parametrize(
    ("step", "expected"), [(1, 1e-4), (5, 5e-4), (10, 1e-3), (11, 1e-3), (10**6, 1e-3)]
)
def test_constant_warms_up_and_stays(step, expected):
    experiment = config.Experiment(
        optimizer=config.Optimizer(peak_lr=1e-3),
        schedule=config.Schedule(kind="constant", warmup_steps=10),
    )
    assert float(learning_rate(experiment, step)) == pytest.approx(expected)


def test_every_parameter_is_in_exactly_one_group():
    members = collections.defaultdict(set)
    for name in names(tiny_configs.init(tiny_configs.MIXTURE)):
        members[group_of(name)].add(name)
    assert set(members) == set(config.PARAMETER_GROUPS)
    assert members["router"] == {"blocks/ffn/router"}
    assert members["norms"] == {
        "blocks/attention_norm/gain",
        "blocks/ffn_norm/gain",
        "final_norm/gain",
    }
    of_dense = {group_of(name) for name in names(tiny_configs.init(tiny_configs.MODEL))}
    assert of_dense == {*config.PARAMETER_GROUPS} - {"router"}
    with pytest.raises(ValueError, match="not in exactly one"):
        group_of("blocks/router/kernel")


@pytest.mark.parametrize(
    ("model", "swiglus"),
    [(tiny_configs.MODEL, ("ffn",)), (tiny_configs.MIXTURE, ("ffn", "ffn/shared"))],
    ids=["dense", "mixture"],
)
def test_the_decayed_set_is_what_the_config_says(model, swiglus):
    params = tiny_configs.init(model)
    assert all(jax.tree.leaves(decay_mask(params, config.Optimizer().decayed)))
    matrices = dict(
        zip(
            names(params),
            jax.tree.leaves(decay_mask(params, ("matrices",))),
            strict=True,
        )
    )
    assert {name for name, decayed in matrices.items() if decayed} == {
        *(f"blocks/attention/{name}" for name in ("query", "key", "value", "out")),
        *(f"blocks/{ffn}/{name}" for ffn in swiglus for name in ("gate", "up", "down")),
    }


def test_updates_equal_adamw_of_torch():
    """Three updates, one of them clipped, with decay on the matrices alone."""
    torch = pytest.importorskip("torch", reason="the parity extra is not installed")
    cfg = config.Optimizer(
        peak_lr=1e-2, weight_decay=0.3, decayed=("matrices",), clip_norm=1.0
    )
    rng = np.random.default_rng(0)
    params = {
        "blocks": {"ffn": {"up": rng.normal(size=(4, 5))}},
        "final_norm": {"gain": rng.normal(size=(6,))},
    }
    params = jax.tree.map(lambda leaf: leaf.astype(np.float32), params)
    theirs = {
        name: torch.nn.Parameter(torch.from_numpy(leaf.copy()))
        for name, leaf in zip(names(params), jax.tree.leaves(params), strict=True)
    }
    groups = [
        {"params": [theirs["blocks/ffn/up"]]},
        {"params": [theirs["final_norm/gain"]], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(
        groups,
        lr=cfg.peak_lr,
        betas=(cfg.b1, cfg.b2),
        eps=cfg.eps,
        weight_decay=cfg.weight_decay,
    )
    optimizer = make_optimizer(cfg)
    state = optimizer.init(params)
    for scale in (0.1, 10.0, 0.2):
        grads = jax.tree.map(
            lambda leaf, scale=scale: (scale * rng.normal(size=leaf.shape)).astype(
                np.float32
            ),
            params,
        )
        for name, grad in zip(names(grads), jax.tree.leaves(grads), strict=True):
            theirs[name].grad = torch.from_numpy(grad.copy())
        torch.nn.utils.clip_grad_norm_(list(theirs.values()), cfg.clip_norm)
        adamw.step()
        updates, state = optimizer.update(grads, state, params)
        params = jax.tree.map(lambda p, u: p - cfg.peak_lr * u, params, updates)
        for name, leaf in zip(names(params), jax.tree.leaves(params), strict=True):
            np.testing.assert_allclose(
                leaf, theirs[name].detach().numpy(), rtol=1e-5, atol=1e-6
            )


def test_a_changed_optimizer_is_a_changed_identity():
    experiment = tiny_configs.experiment()
    other = dataclasses.replace(
        experiment,
        optimizer=dataclasses.replace(experiment.optimizer, weight_decay=0.2),
    )
    before, after = identity_fields(experiment, "f"), identity_fields(other, "f")
    assert identity(before) != identity(after)


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("blocks/attention_out_norm/gain", "norms"),
        ("blocks/attention/query_norm/gain", "norms"),
        ("blocks/attention/gate", "matrices"),
    ],
)
def test_parameters_of_a_new_variant_find_their_group(name, group):
    assert group_of(name) == group
