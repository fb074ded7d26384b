"""Compilers for devices that are not here.

A test that needs one is skipped where it is not installed.
"""

import importlib.util

import pytest


def _needs(package: str, extra: str):
    skipped = pytest.mark.skipif(
        importlib.util.find_spec(package) is None,
        reason=f"the extra {extra} is not installed",
    )
    return lambda test: pytest.mark.aot(skipped(test))


needs_tpu_compiler = _needs("libtpu", "tpu")
needs_gpu_compiler = _needs("jax_cuda13_plugin", "gpu")
