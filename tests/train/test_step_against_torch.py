"""Loss, gradients and statistics of a step at the sizes of real use, against torch in float64.

The gradients are compared tensor by tensor of the exported model.
"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from sparsecod_jax.pretrained.exporting import export
from sparsecod_jax.pretrained.hf_tensors import tensors, to_theirs
from tests.support import loaded_models, saved_runs, tiny_configs

pytest.importorskip("torch", reason="the parity extra is not installed")
pytest.importorskip("transformers", reason="the parity extra is not installed")
from tests.support import torch_scores

DENSE = dataclasses.replace(
    tiny_configs.MODEL, d_model=64, d_ff=192, vocab_size=300, init_std=0.1
)
WIDE = dataclasses.replace(DENSE, d_model=256, d_ff=512, n_layers=2, init_std=0.06)
WIDEST = dataclasses.replace(DENSE, d_model=512, d_ff=1024, n_layers=2, init_std=0.04)
# Without the losses of the router, which transformers adds in another form.
MIXTURE = dataclasses.replace(
    DENSE,
    n_layers=2,
    d_ff=32,
    n_experts=8,
    top_k=2,
    load_balance_weight=0.0,
    router_z_weight=0.0,
)

ROOT = Path(__file__).resolve().parents[2]
HERE = "tests.support.gradients_here"
TWO_DEVICES = {"JAX_NUM_CPU_DEVICES": "2"}
CASES = [
    pytest.param(DENSE, 2, 1, {}, id="dense"),
    pytest.param(MIXTURE, 2, 1, {}, id="mixture"),
]
SLOW_CASES = [
    pytest.param(DENSE, 4, 2, {}, id="two microbatches"),
    pytest.param(DENSE, 4, 1, TWO_DEVICES, id="two devices"),
    pytest.param(MIXTURE, 4, 1, TWO_DEVICES, id="mixture on two devices"),
    pytest.param(WIDE, 2, 1, {}, id="256 wide"),
    pytest.param(WIDEST, 2, 1, {}, id="512 wide"),
]


def _relative(actual, expected) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def _step_equals_torch(
    model, rows: int, microbatches: int, environment: dict, folder
) -> None:
    run = saved_runs.run(folder / "run", model, loaded_models.sharpened(model))
    export(str(run.path), str(folder / "hf"))
    tokens = (
        np.random.default_rng(2)
        .integers(0, model.vocab_size, (rows, 1025))
        .astype(np.int32)
    )
    np.save(folder / "tokens.npy", tokens)
    words = [
        json.dumps(dataclasses.asdict(model)),
        f"{folder}/tokens.npy",
        str(microbatches),
    ]
    command = [sys.executable, "-m", HERE, *words, f"{folder}/out.npz"]
    subprocess.run(
        command, cwd=ROOT, env=os.environ | {"XLA_FLAGS": ""} | environment, check=True
    )
    found = np.load(folder / "out.npz")
    exported = torch_scores.Exported(folder / "hf")

    loss, expected = torch_scores.gradients(exported, tokens)
    np.testing.assert_allclose(found["loss"], loss, rtol=1e-5)
    # The experts of transformers are stacked; those are compared below.
    experts = {
        tensor.name for tensor in tensors(model) if ".mlp.experts." in tensor.name
    }
    assert {
        tensor.name for tensor in tensors(model) if tensor.path
    } - expected.keys() == experts
    for tensor in tensors(model):
        if tensor.path and tensor.name not in experts:
            ours = found[f"gradient/{tensor.path}"][tensor.part]
            assert _relative(to_theirs(tensor, ours), expected[tensor.name]) < 1e-4, (
                tensor.name
            )
    if model.n_experts:
        _check_experts(found, expected, model)
    _check_statistics(found, exported, tokens[:, :-1], moments=microbatches == 1)


def _check_experts(found, expected, model) -> None:
    for layer in range(model.n_layers):
        prefix = f"model.layers.{layer}.mlp.experts"
        gate, up = (
            found[f"gradient/blocks/ffn/{name}"][layer] for name in ("gate", "up")
        )
        both = np.concatenate([gate, up], axis=2).swapaxes(1, 2)
        assert _relative(both, expected[f"{prefix}.gate_up_proj"]) < 1e-4
        down = found["gradient/blocks/ffn/down"][layer].swapaxes(1, 2)
        assert _relative(down, expected[f"{prefix}.down_proj"]) < 1e-4


def _check_statistics(found, exported, inputs_BT, *, moments: bool) -> None:
    profile = torch_scores.profile(exported, inputs_BT)
    for name in (
        "variance/residual",
        "variance/attention",
        "variance/ffn",
        "cosine/update",
    ):
        assert _relative(found[name], profile[name]) < 1e-5, name
    if not moments:  # over microbatches they are means of those of each
        return
    states = exported.states(inputs_BT)
    for number in range(len(exported.layers)):
        z_ND = states[number + 1].reshape(-1, exported.width).numpy()
        z_M = z_ND.ravel()
        expected = {
            "mean": z_M.mean(),
            "std": z_M.std(ddof=1),
            "skewness": scipy.stats.skew(z_M),
            "kurtosis": scipy.stats.kurtosis(z_M, fisher=False),
            "channel_avg_skewness": scipy.stats.skew(z_ND, axis=1).mean(),
            "channel_avg_kurtosis": scipy.stats.kurtosis(
                z_ND, axis=1, fisher=False
            ).mean(),
            "feature_avg_skewness": scipy.stats.skew(z_ND, axis=0).mean(),
            "feature_avg_kurtosis": scipy.stats.kurtosis(
                z_ND, axis=0, fisher=False
            ).mean(),
        }
        # scipy divides by the population's deviation, and the package by the unbiased one.
        sizes = {"channel": z_ND.shape[1], "feature": z_ND.shape[0]}
        for name, value in expected.items():
            count = sizes.get(name.split("_")[0], z_M.size)
            power = {"skewness": 1.5, "kurtosis": 2.0}.get(name.split("_")[-1], 0.0)
            corrected = value * ((count - 1) / count) ** power
            actual = found[f"moments/residual/{name}"][number]
            np.testing.assert_allclose(
                actual, corrected, rtol=1e-3, atol=1e-5, err_msg=name
            )


@pytest.mark.parametrize(("model", "rows", "microbatches", "environment"), CASES)
def test_step_equals_torch(model, rows, microbatches, environment, tmp_path):
    _step_equals_torch(model, rows, microbatches, environment, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "rows", "microbatches", "environment"), SLOW_CASES)
def test_other_steps_equal_torch(model, rows, microbatches, environment, tmp_path):
    _step_equals_torch(model, rows, microbatches, environment, tmp_path)


@pytest.mark.gpu
@pytest.mark.parametrize(("model", "rows", "microbatches", "environment"), CASES)
def test_a_gpus_step_equals_torch(model, rows, microbatches, environment, tmp_path):
    _step_equals_torch(model, rows, microbatches, {"JAX_PLATFORMS": "cuda"}, tmp_path)
