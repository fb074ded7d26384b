"""The Python API against numpy, against the files that it reads, and as the tutorial uses it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from sparsecod_jax import api
from sparsecod_jax.analysis.scores import analyze
from sparsecod_jax.data.prepare import Request, prepare
from sparsecod_jax.errors import ConfigError
from tests.support import numpy_model, saved_runs, tiny_configs

ROOT = Path(__file__).resolve().parents[1]
TUTORIAL = ROOT / "docs" / "tutorials" / "notebook.md"
BLOCKS = tiny_configs.MODEL.n_layers
TINY = {
    "steps": 4,
    "global_batch": 8,
    "schedule.warmup_steps": 1,
    "data.seq_len": 32,
    "model.vocab_size": 300,
    "model.d_model": 16,
    "model.n_layers": 3,
    "model.d_ff": 32,
    "evaluation.seq_len": 32,
    "evaluation.batch_size": 8,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    run = saved_runs.run(tmp_path_factory.mktemp("api") / "run", tiny_configs.MODEL)
    return api.load(str(run.path))


@pytest.fixture(scope="module")
def tokens_NT():
    return np.random.default_rng(0).integers(0, 256, (5, 12))


def test_the_residual_stream_is_that_of_numpy(model, tokens_NT):
    stream_LNTD = api.residual_stream(model, tokens_NT)
    expected = numpy_model.states(model.params, tokens_NT, tiny_configs.MODEL)
    np.testing.assert_allclose(stream_LNTD, np.array(expected), rtol=2e-5, atol=2e-6)


def test_a_score_is_that_of_scores_json(model, tokens_NT, tmp_path):
    np.save(tmp_path / "tokens.npy", tokens_NT)
    written = analyze(
        str(model.source.path),
        scores="profile,permutation",
        tokens=str(tmp_path / "tokens.npy"),
        out=str(tmp_path / "scores"),
    )
    expected = json.loads(written.read_text())
    found = api.score(model, tokens_NT, "permutation")["permutation"]
    np.testing.assert_allclose(
        found["matrix"], expected["permutation"]["matrix"], rtol=1e-6
    )
    found = api.score(model, tokens_NT, "profile")["block_influence"]
    np.testing.assert_allclose(found, expected["block_influence"], rtol=1e-6)


def test_a_score_of_ones_own_gets_the_model_and_the_tokens(model, tokens_NT):
    def own(subject, given_NT):
        np.testing.assert_array_equal(given_NT, tokens_NT)
        return subject.cfg.n_layers

    assert api.score(model, tokens_NT, own) == BLOCKS


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([[0, 5000]], "the tokens reach from 0 to 5000: use ids from 0 to"),
        ([[-1, 3]], "the tokens reach from -1 to 3"),
        ([1, 2], r"the tokens are int64 \[2\]: give integers \[N, T\]"),
        ([[0.5, 1.0]], "the tokens are float64"),
        (np.zeros((0, 4), int), r"the tokens are int64 \[0, 4\]"),
    ],
)
def test_other_tokens_are_refused(model, tokens, message):
    with pytest.raises(ConfigError, match=message):
        api.residual_stream(model, tokens)
    with pytest.raises(ConfigError, match=message):
        api.score(model, tokens, "profile")


def test_unknown_scores_are_refused(model, tokens_NT):
    with pytest.raises(ConfigError, match=r"no score 'x': choose from profile, "):
        api.score(model, tokens_NT, "x")


@pytest.fixture(scope="module")
def trained(tokens, tmp_path_factory):
    """A run with two statistics of our own, one of which the package measures too."""
    workdir = tmp_path_factory.mktemp("trained") / "run"

    def variance_of_ffn(x_BTD, attention_BTD, ffn_BTD, y_BTD):
        return jnp.var(ffn_BTD, axis=-1, ddof=1).mean()

    def closure(x_BTD, attention_BTD, ffn_BTD, y_BTD):
        return jnp.abs(y_BTD - x_BTD - attention_BTD - ffn_BTD).max()

    statistics = {"own/ffn": variance_of_ffn, "own/closure": closure}
    overrides = TINY | {"data.path": tokens, "execution.accumulation": 2}
    final = api.train(
        "smoke:nano", str(workdir), overrides=overrides, statistics=statistics
    )
    return workdir, final


def test_statistics_of_ones_own_are_measured_in_every_step_and_block(trained):
    layers = api.layer_metrics(str(trained[0]))
    assert list(layers.index.names) == ["run", "step", "block"]
    assert layers.index.get_level_values("step").max() == 4
    assert len(layers) == 4 * 3
    np.testing.assert_allclose(layers["own/ffn"], layers["variance/ffn"], rtol=1e-4)
    assert np.all(layers["own/closure"].to_numpy() < 1e-5)


def test_statistics_of_ones_own_change_no_other_number(trained, tokens, tmp_path):
    overrides = TINY | {"data.path": tokens, "execution.accumulation": 2}
    api.train("smoke:nano", str(tmp_path / "run"), overrides=overrides)
    plain = api.metrics(str(tmp_path / "run"))
    names = ["loss", "grad_norm", "batch_digest"]
    own = api.metrics(str(trained[0]))
    np.testing.assert_allclose(plain[names], own[names], rtol=1e-6)


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        ({"variance/ffn": lambda x, a, f, y: x.mean()}, "is there already"),
        ({"own": lambda x, a, f, y: x}, "'own' is no scalar: reduce it"),
    ],
)
def test_impossible_statistics_are_refused(statistics, message, tokens, tmp_path):
    overrides = TINY | {"data.path": tokens}
    with pytest.raises(ConfigError, match=message):
        api.train(
            "smoke", str(tmp_path / "run"), overrides=overrides, statistics=statistics
        )
    assert not (tmp_path / "run").exists()


def test_metrics_are_the_lines_of_the_file(trained):
    workdir, final = trained
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    frame = api.metrics(str(workdir)).loc["run"]
    assert list(frame.index) == [line["step"] for line in lines] == [1, 2, 3, 4]
    assert list(frame["loss"]) == [line["loss"] for line in lines]
    assert final["tokens"] == 4 * 8 * 32


def test_layer_scores_have_one_row_per_block(trained):
    workdir, _ = trained
    assert len(api.layer_scores(str(workdir))) == 0
    analyze(
        str(workdir), scores="profile,causal", sequences=4, seq_len=16, split="train"
    )
    written = json.loads((workdir / "analysis" / "scores.json").read_text())
    frame = api.layer_scores(str(workdir))
    assert list(frame.index) == [("run", 1), ("run", 2), ("run", 3)]
    assert list(frame["block_influence"]) == written["block_influence"]
    assert "causal/matrix" not in frame


def test_the_tutorial_runs(tmp_path, monkeypatch):
    """Each snippet after the one before, on little data, with fewer steps."""
    monkeypatch.chdir(tmp_path)
    prepare(Request("sotu", vocab_size=2048, max_documents=20), "data/sotu")
    snippets = re.findall(r"```python\n(.*?)```", TUTORIAL.read_text(), re.DOTALL)
    assert len(snippets) == 5
    assert all(len(snippet.splitlines()) <= 25 for snippet in snippets)
    shortened = [snippet.replace('"steps": 40', '"steps": 5') for snippet in snippets]
    names: dict[str, object] = {}
    for snippet in shortened:
        exec(compile(snippet, TUTORIAL.name, "exec"), names)
    assert names["stream"].shape[:2] == (5, 2)  # pyright: ignore[reportAttributeAccessIssue]


def test_a_notebook_needs_no_flags():
    """In a process of its own, as this one has the flags that the tests set."""
    program = (
        "from sparsecod_jax import api\n"
        "from sparsecod_jax.parallel.self_check import check_compiler\n"
        "check_compiler()\n"
    )
    environment = os.environ | {"XLA_FLAGS": ""}
    command = [sys.executable, "-c", program]
    subprocess.run(command, env=environment, check=True, timeout=120)
