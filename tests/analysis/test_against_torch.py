"""Every score at the sizes of real use, against torch in float64 on the exported model.

Tiny models hid a compiler that was wrong from 512 positions on.
"""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from sparsecod_jax.pretrained.exporting import export
from tests.support import loaded_models, saved_runs, tiny_configs

pytest.importorskip("torch", reason="the parity extra is not installed")
pytest.importorskip("transformers", reason="the parity extra is not installed")
from tests.support import torch_scores

TOLERANCE = 1e-4  # relative, of float32 to float64
FORMS = {
    "product": {},
    "without libraries": {"XLA_FLAGS": "--xla_cpu_experimental_ynn_fusion_type="},
    "two devices": {"JAX_NUM_CPU_DEVICES": "2"},
}

DENSE = dataclasses.replace(
    tiny_configs.MODEL, d_model=64, d_ff=192, vocab_size=300, init_std=0.1
)
WIDE = dataclasses.replace(DENSE, d_model=256, d_ff=512, n_layers=2, init_std=0.06)
WIDEST = dataclasses.replace(DENSE, d_model=512, d_ff=1024, n_layers=2, init_std=0.04)
MIXTURE = dataclasses.replace(
    DENSE, n_layers=2, d_ff=32, n_experts=8, top_k=2, shared_expert=True, d_shared=24
)
SCALED = dataclasses.replace(DENSE, layer_norm_scaling=True)

# Name, model, sequences, positions, scores.
ALL = "profile,usefulness,causal,permutation,jacobian,sparsity"
CASES = [
    pytest.param(DENSE, 2, 1024, ALL.replace("jacobian,", ""), id="dense"),
    pytest.param(
        dataclasses.replace(DENSE, n_layers=1), 2, 1024, "jacobian", id="one block"
    ),
    pytest.param(MIXTURE, 2, 1024, "profile,usefulness,sparsity", id="mixture"),
]
SLOW_CASES = [
    pytest.param(DENSE, 8, 96, ALL, id="64: 8 x 96"),
    pytest.param(DENSE, 4, 512, ALL, id="64: 4 x 512"),
    pytest.param(DENSE, 100, 128, ALL, id="64: 100 x 128"),
    # A block that is swapped in the exported model would take its folded factor along.
    pytest.param(
        SCALED, 2, 1024, ALL.replace("permutation,", ""), id="LayerNorm Scaling"
    ),
    pytest.param(WIDE, 2, 1024, ALL, id="256: 2 x 1024"),
    # Maps of 512 channels need many tokens, or they pass on every rounding error.
    pytest.param(WIDEST, 4, 1024, ALL, id="512: 4 x 1024"),
    pytest.param(MIXTURE, 2, 1024, ALL, id="mixture"),
]


def _close(actual, expected, tolerance: float = TOLERANCE) -> None:
    actual, expected = np.asarray(actual, float), np.asarray(expected, float)
    assert actual.shape == expected.shape
    error = np.linalg.norm(actual - expected) / np.linalg.norm(expected)
    assert error <= tolerance, f"relative error {error:.2e}"


def _check(result: dict, folder, tokens_NT: np.ndarray, names: list[str]) -> None:
    """All scores that were computed equal those of torch."""
    exported = torch_scores.Exported(folder)
    intact = exported.losses(exported.states(tokens_NT)[-1], tokens_NT).mean()
    np.testing.assert_allclose(result["baseline_loss"], intact, rtol=TOLERANCE)
    checks = {
        "profile": _check_profile,
        "usefulness": _check_usefulness,
        "causal": _check_causal,
        "permutation": _check_permutation,
        "jacobian": _check_jacobian,
        "sparsity": _check_sparsity,
    }
    for name in names:
        checks[name](result, exported, tokens_NT)


def _check_profile(result, exported, tokens_NT):
    for name, expected_L in torch_scores.profile(exported, tokens_NT).items():
        if name == "block_influence":
            actual_L = result[name]
        elif name.startswith("variance/"):
            actual_L = result["variance"][name.removeprefix("variance/")]
        else:
            actual_L = result["profile"][name]
        # Nearly equal logits may change places among the best five.
        tolerance = 1e-3 if name == "lens_overlap" else TOLERANCE
        if name == "lens_divergence":  # 0 after the last block
            actual_L, expected_L = actual_L[:-1], expected_L[:-1]
        _close(actual_L, expected_L, tolerance)


def _check_usefulness(result, exported, tokens_NT):
    _close(
        result["usefulness"]["loss_ratio"], torch_scores.usefulness(exported, tokens_NT)
    )


def _check_causal(result, exported, tokens_NT):
    parts = {"block": result["causal"], "attention": result["causal"]["attention"]}
    parts["ffn"] = result["causal"]["ffn"]
    for part, values in parts.items():
        _close(values["matrix"], torch_scores.causal(exported, tokens_NT, part))
    future = result["causal"]["future"]
    _close(
        future["matrix"],
        torch_scores.causal_future(exported, tokens_NT, future["cuts"]),
    )


def _check_permutation(result, exported, tokens_NT):
    # Differences of losses: the error is that of a loss.
    expected = torch_scores.permutation(exported, tokens_NT)
    np.testing.assert_allclose(
        result["permutation"]["matrix"], expected, atol=1e-5, rtol=TOLERANCE
    )


def _check_jacobian(result, exported, tokens_NT):
    width = exported.width
    variants = (
        (result["jacobian"], torch_scores.jacobian),
        (result["jacobian"]["same_position"], torch_scores.own_jacobian),
    )
    for values, compute in variants:
        for number in range(len(exported.layers)):
            matrix_DD = compute(exported, tokens_NT, number)
            distance = np.linalg.norm(matrix_DD - np.eye(width))
            expected = {
                "distance_from_identity": distance / width,
                "relative_distance": distance / np.sqrt(width),
                "diagonal_mean": np.diag(matrix_DD).mean(),
                "diagonal_std": np.diag(matrix_DD).std(ddof=1),
                "spectral_norm": np.linalg.svd(matrix_DD)[1][0],
            }
            for name, value in expected.items():
                np.testing.assert_allclose(
                    values[name][number], value, rtol=TOLERANCE, err_msg=name
                )


def _check_sparsity(result, exported, tokens_NT):
    heads = result["sparsity"]["attention"]["heads"]
    for name, expected_LH in torch_scores.attention(exported, tokens_NT).items():
        # A weight at the threshold may be counted or not.
        tolerance = 1e-3 if name.startswith("small_") else TOLERANCE
        _close(heads[name], expected_LH, tolerance)
    for name, expected_L in torch_scores.activations(exported, tokens_NT).items():
        _close(result["sparsity"]["activations"][name], expected_L)
    if "experts" in result["sparsity"]:
        expected = torch_scores.experts(exported, tokens_NT)
        _close(
            result["sparsity"]["experts"]["utilisation"], expected["utilisation"], 1e-3
        )
        importance = result["sparsity"]["experts"]["importance"]
        np.testing.assert_allclose(
            importance, expected["importance"], atol=1e-5, rtol=1e-3
        )


def _exported_run(model, sequences: int, positions: int, folder):
    run = saved_runs.run(folder / "run", model, loaded_models.sharpened(model))
    export(str(run.path), str(folder / "hf"))
    rng = np.random.default_rng(1)
    tokens_NT = rng.integers(0, model.vocab_size, (sequences, positions)).astype(
        np.int32
    )
    np.save(folder / "tokens.npy", tokens_NT)
    return run, tokens_NT


def _command_equals_torch(
    model, sequences, positions, scores, folder, **environment
) -> None:
    """As a user runs it: a process of its own, with full optimisation."""
    run, tokens_NT = _exported_run(model, sequences, positions, folder)
    words = ["analyze", f"--workdir={run.path}", f"--token_file={folder}/tokens.npy"]
    words += [f"--scores={scores}", "--every_sequence", f"--out={folder}/out"]
    command = [sys.executable, "-m", "sparsecod_jax", *words]
    subprocess.run(
        command, env=os.environ | {"XLA_FLAGS": ""} | environment, check=True
    )
    result = json.loads((folder / "out" / "scores.json").read_text())
    _check(result, folder / "hf", tokens_NT, scores.split(","))


@pytest.mark.parametrize(("model", "sequences", "positions", "scores"), CASES)
def test_the_command_equals_torch(model, sequences, positions, scores, tmp_path):
    _command_equals_torch(model, sequences, positions, scores, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("model", "sequences", "positions", "scores"), SLOW_CASES)
def test_every_form_equals_torch(model, sequences, positions, scores, form, tmp_path):
    _command_equals_torch(model, sequences, positions, scores, tmp_path, **FORMS[form])


@pytest.mark.gpu
@pytest.mark.parametrize(("model", "sequences", "positions", "scores"), SLOW_CASES)
def test_a_gpus_scores_equal_torch(model, sequences, positions, scores, tmp_path):
    gpu = {"JAX_PLATFORMS": "cuda"}
    _command_equals_torch(model, sequences, positions, scores, tmp_path, **gpu)
