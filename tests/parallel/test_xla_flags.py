"""XLA gets the product's flags, and a user's own win."""

import importlib.metadata
import os

import pytest

from sparsecod_jax import cli
from sparsecod_jax.parallel import xla_flags

PRODUCTS = (xla_flags.leave_products_to_libraries, "--xla_gpu_enable_triton_gemm")
REDUCTIONS = (
    xla_flags.compute_own_reductions,
    "--xla_cpu_experimental_ynn_fusion_type",
)


@pytest.mark.parametrize(("add", "name"), [PRODUCTS, REDUCTIONS])
@pytest.mark.parametrize("own", ["", "--xla_dump_to=/tmp/somewhere"])
def test_added_once(add, name, own, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", own)
    add()
    add()
    assert os.environ["XLA_FLAGS"].count(name) == 1
    assert own in os.environ["XLA_FLAGS"]


@pytest.mark.parametrize(("add", "name"), [PRODUCTS, REDUCTIONS])
def test_the_users_flag_comes_last_and_wins(add, name, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", f"{name}=theirs")
    add()
    assert os.environ["XLA_FLAGS"].endswith(f"{name}=theirs")


@pytest.mark.parametrize("release", ["0.9.2", "0.12.0", "1.0.0"])
def test_a_release_that_may_not_know_a_flag_does_not_get_it(release, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", {"jaxlib": release}.__getitem__)
    monkeypatch.setenv("XLA_FLAGS", "")
    xla_flags.compute_own_reductions()
    assert os.environ["XLA_FLAGS"] == ""


@pytest.mark.parametrize("add", [PRODUCTS[0], REDUCTIONS[0]])
def test_a_file_of_flags_is_left_alone(add, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "folder/flags.txt")
    add()
    assert os.environ["XLA_FLAGS"] == "folder/flags.txt"


@pytest.mark.parametrize(
    ("words", "function", "flags"),
    [
        (
            ["analyze", "--workdir=x"],
            "sparsecod_jax.analysis.scores.analyze",
            [xla_flags.LIBRARY_PRODUCTS, xla_flags.OWN_REDUCTIONS],
        ),
        (
            ["export", "--workdir=x", "--out=y"],
            "sparsecod_jax.pretrained.exporting.export",
            [xla_flags.OWN_REDUCTIONS],
        ),
    ],
)
def test_subcommands_set_them_before_they_compute(words, function, flags, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    seen = []
    monkeypatch.setattr(function, lambda *_, **__: seen.append(os.environ["XLA_FLAGS"]))
    monkeypatch.setattr(
        "sparsecod_jax.parallel.compilation.keep_programs", lambda: None
    )
    cli.main(words)
    assert seen
    assert set(seen[0].split()) == set(flags)
