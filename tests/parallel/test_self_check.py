"""A compiler that returns wrong gradients is refused; the product's own flags make it right."""

import importlib.metadata
import os
import subprocess
import sys

import pytest

from sparsecod_jax.parallel.self_check import check_compiler
from sparsecod_jax.parallel.xla_flags import OWN_REDUCTIONS

LIBRARY_REDUCTIONS = "--xla_cpu_experimental_ynn_fusion_type=reduce"
CHECK = "from sparsecod_jax.parallel.self_check import check_compiler; check_compiler()"


def _check(flags: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, "-c", CHECK], env=environment, capture_output=True, text=True
    )


def test_the_tests_own_compiler_is_right():
    check_compiler()


@pytest.mark.skipif(
    not importlib.metadata.version("jaxlib").startswith("0.10."),
    reason="the fault is of jaxlib 0.10",
)
def test_the_fault_is_noticed_and_the_sentence_names_the_flag():
    wrong = _check(LIBRARY_REDUCTIONS)
    assert wrong.returncode != 0
    assert f"set XLA_FLAGS={OWN_REDUCTIONS}" in wrong.stderr.splitlines()[-1]


def test_the_products_flags_make_it_right():
    right = _check(OWN_REDUCTIONS)
    assert right.returncode == 0, right.stderr
