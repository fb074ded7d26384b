"""What is known of a device, by the name that jax gives it."""

import pytest

from sparsecod_jax.errors import ConfigError
from sparsecod_jax.parallel import devices
from sparsecod_jax.parallel.devices import GIB


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch):
    for name in devices.SHARES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("kind", "peak", "gibibytes"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12, 0.75 * 79),
        ("NVIDIA H200", 989e12, 0.75 * 139),
        ("NVIDIA GH200 480GB", 989e12, 0.75 * 94),
        ("NVIDIA A100-SXM4-80GB", 312e12, 0.75 * 39),  # at least
        ("nvidia a100-pcie-40gb", 312e12, 0.75 * 39),
        ("TPU v4", 275e12, 30.75),
        ("TPU v5 lite", 197e12, 15.75),
        ("TPU v5e", 197e12, 15.75),
        ("TPU v5", 459e12, 95.74),
        ("TPU v5p", 459e12, 95.74),
        ("TPU v6 lite", 918e12, 31.25),
        ("TPU v6e", 918e12, 31.25),
    ],
)
def test_devices_that_are_known(kind, peak, gibibytes):
    chip = devices.find(kind)
    assert chip
    assert (chip.peak_flops, chip.memory) == (peak, gibibytes * GIB)


@pytest.mark.parametrize("name", devices.SHARES)
def test_a_gpu_has_the_memory_that_jax_was_told_to_take(name, monkeypatch):
    monkeypatch.setenv(name, "0.4")
    h100, v4 = devices.find("NVIDIA H100 80GB HBM3"), devices.find("TPU v4")
    assert h100
    assert v4
    assert (h100.memory, v4.memory) == (0.4 * 79 * GIB, 30.75 * GIB)
    monkeypatch.setenv(name, "0,4")
    message = rf"{name}=0,4 is not a number: write it like 0\.9"
    with pytest.raises(ConfigError, match=message):
        devices.find("NVIDIA H100 80GB HBM3")


def test_two_variables_for_one_share_are_refused(monkeypatch):
    for name in devices.SHARES:
        monkeypatch.setenv(name, "0.4")
    message = (
        "XLA_CLIENT_MEM_FRACTION and XLA_PYTHON_CLIENT_MEM_FRACTION are both set,"
        " where jax takes only one: unset the latter"
    )
    with pytest.raises(ConfigError, match=message):
        devices.find("NVIDIA H100 80GB HBM3")


@pytest.mark.parametrize(
    "kind",
    ["NVIDIA RTX A1000", "NVIDIA GeForce RTX 4090", "TPU v3", "TPU v7x", "cpu", ""],
)
def test_of_others_nothing_is_said(kind):
    assert devices.find(kind) is None
