"""Which devices a name stands for, and how other names are refused."""

import importlib.util
import re

import numpy as np
import pytest

from sparsecod_jax import config
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.parallel import devices
from sparsecod_jax.parallel.sharding import count_slices, make_mesh
from sparsecod_jax.plan import topologies
from tests.support.compilers import needs_gpu_compiler, needs_tpu_compiler


@needs_tpu_compiler
@pytest.mark.parametrize(
    ("name", "count", "slices", "kind", "gibibytes"),
    [
        ("v4:2x2x2", 8, 1, "TPU v4", 30.75),
        ("v5e:4x4", 16, 1, "TPU v5 lite", 15.75),
        ("v5p:4x4x4", 64, 1, "TPU v5", 95.74),
        ("v6e:2x2", 4, 1, "TPU v6 lite", 31.25),
        ("v5p:2x2x2*2", 16, 2, "TPU v5", 95.74),
        ("v5e:2x4*3", 24, 3, "TPU v5 lite", 15.75),
    ],
)
def test_tpus(name, count, slices, kind, gibibytes):
    found = topologies.find(name)
    assert len(found.devices) == count
    assert found.slices == count_slices(found.devices) == slices
    assert {device.device_kind for device in found.devices} == {kind}
    known = devices.find(kind)
    assert known
    assert known.memory == gibibytes * devices.GIB


@needs_tpu_compiler
@pytest.mark.parametrize(
    "name",
    [
        "v4:2x2x2",
        "v4:2x2x1",
        "v5e:2x4",
        "v5e:4x4",
        "v5p:4x4x4",
        "v6e:2x2",
        "v6e:8x8",
        "v5p:2x2x2*2",
    ],
)
def test_what_a_name_says_without_a_compiler_is_what_the_compiler_says(name):
    shape, found = topologies.shape(name), topologies.find(name)
    hosts = {device.process_index for device in found.devices}
    assert shape.slices == found.slices
    assert shape.slices * shape.chips == len(found.devices)
    assert shape.slices * shape.hosts == len(hosts)
    assert shape.is_tpu


def test_a_host_of_gpus_is_a_slice_of_its_own():
    shape = topologies.shape("h100:4x8")
    assert (shape.slices, shape.hosts, shape.chips_per_host) == (4, 1, 8)
    assert not shape.is_tpu


@needs_tpu_compiler
def test_two_slices_are_the_halves_of_the_data_axis():
    two_slices = topologies.find("v5p:2x2x2*2")
    mesh = make_mesh(config.Mesh(4, 4, 1, 1), two_slices.devices)
    first, second = np.split(mesh.devices, 2)
    assert {device.slice_index for device in first.flat} == {0}
    assert {device.slice_index for device in second.flat} == {1}


@needs_gpu_compiler
@pytest.mark.parametrize(
    ("name", "count", "hosts"),
    [("h100:1", 1, 1), ("h100:8", 8, 1), ("h100:4x8", 32, 4)],
)
def test_gpus(name, count, hosts):
    found = topologies.find(name)
    assert (len(found.devices), found.slices) == (count, hosts)
    assert {device.device_kind for device in found.devices} == {"NVIDIA H100 80GB HBM3"}
    wanted = config.Mesh(hosts, count // hosts, 1, 1)
    mesh = make_mesh(wanted, found.devices)
    assert mesh.devices.shape == (hosts, count // hosts, 1, 1)


UNKNOWN_TPUS = [
    "v5p",
    "v5p:4",
    "v5p:4x4",
    "v6e:2x2x2",
    "v7x:4x4",
    "v5p:4x4x4*",
    "v5p:4x4x4*0",
    "v5e:0x4",
    "v5p:4x-4x4",
]
UNKNOWN_GPUS = ["h100", "h100:0", "h100:8x8x8", "h100:8*2", "h200:8"]


@pytest.mark.parametrize("name", ["", "cpu:8", *UNKNOWN_TPUS, *UNKNOWN_GPUS])
def test_other_names_are_refused(name):
    with pytest.raises(ConfigError) as refused:
        topologies.find(name)
    assert str(refused.value) == (
        f"--topology={name} is not known: write it like v4:2x2x2, v5p:4x4x4, v5e:4x4,"
        " v6e:8x8, h100:8 (GPUs of a host), h100:8x8 (hosts x GPUs),"
        " v5p:4x4x4*2 (two slices)"
    )


@needs_tpu_compiler
@pytest.mark.parametrize("name", ["v5e:3x3", "v5e:1x1", "v4:1x1x1", "v6e:1x4"])
def test_slices_that_are_not_built_are_refused(name):
    with pytest.raises(ConfigError) as refused:
        topologies.find(name)
    assert re.fullmatch(
        rf"--topology={re.escape(name)} is no slice that exists \([^\n]+\): write it like [^\n]+",
        str(refused.value),
    )


@pytest.mark.parametrize(
    ("name", "package", "sentence"),
    [
        (
            "v5p:2x2x2",
            "libtpu",
            "compiling for a TPU needs its compiler: pip install 'sparsecod-jax[tpu]'",
        ),
        (
            "h100:8",
            "jax_cuda13_plugin",
            "compiling for a GPU needs its compiler: pip install 'sparsecod-jax[gpu]'",
        ),
    ],
)
def test_without_its_compiler_a_topology_is_refused(
    name, package, sentence, monkeypatch
):
    installed = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda wanted: None if wanted == package else installed(wanted),
    )
    with pytest.raises(ConfigError) as refused:
        topologies.find(name)
    assert str(refused.value) == sentence
