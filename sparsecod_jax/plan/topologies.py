"""Which devices would be there? Slices and GPU hosts by name, described to the compiler, which needs no chip to compile for them."""

import importlib.util
import math
import os
import re
from typing import Any, NamedTuple

from sparsecod_jax.errors import ConfigError
from sparsecod_jax.parallel import devices
from sparsecod_jax.parallel.devices import Device

NAMES = "v4:2x2x2, v5p:4x4x4, v5e:4x4, v6e:8x8, h100:8 (GPUs of a host), h100:8x8 (hosts x GPUs), v5p:4x4x4*2 (two slices)"

# Without these the compiler lets only one process compile at a time, looks for the metadata server of a TPU VM, and warns of its absence.
NO_TPU_HERE = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
}

TPU_OPTIONS = {
    "v4": {"chip_config_name": "megacore"},
    "v5e": {},
    "v5p": {},
    "v6e": {},
}  # megacore: one device a chip

HOST_OF_TPU = 4  # chips, 2x2 of a slice; those of eight are not used

H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84929347584 shared_memory_per_block_optin: 232448 cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 12 } runtime_version { major: 13 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


class Topology(NamedTuple):
    """Devices to compile for."""

    name: str
    devices: list[Any]
    slices: int  # groups with a fast network among themselves: TPU slices, GPU hosts
    device: Device  # what each of them can do


class Shape(NamedTuple):
    """What a name says, without a compiler."""

    kind: str  # v4, v5e, v5p, v6e, h100
    sides: tuple[int, ...]  # of a slice in chips; of a GPU host, its GPUs
    slices: int  # as above

    is_tpu = property(lambda self: self.kind != "h100")
    chips = property(lambda self: math.prod(self.sides))  # of a slice
    chips_of_host = property(lambda self: HOST_OF_TPU if self.is_tpu else self.chips)
    hosts = property(lambda self: self.chips // self.chips_of_host)  # of a slice


def shape(name: str) -> Shape:
    """How large a topology such as v5p:4x4x4, v5p:4x4x4*2 or h100:8x8 is, whether it is built or not.

    Raises:
      ConfigError: it is not written so, or not of whole hosts.
    """
    size = r"[1-9]\d*"
    if tpu := re.fullmatch(
        rf"(?:(v4|v5p):({size}x{size}x{size})|(v5e|v6e):({size}x{size}))(?:\*({size}))?",
        name,
    ):
        sides = tuple(map(int, (tpu[2] or tpu[4]).split("x")))
        if sides[0] % 2 or sides[1] % 2:
            raise ConfigError(
                f"--topology={name} is no slice that exists (hosts have 2x2 chips): write it like {NAMES}"
            )
        return Shape(tpu[1] or tpu[3], sides, int(tpu[5] or 1))
    if gpu := re.fullmatch(rf"h100:(?:({size})x)?({size})", name):
        return Shape("h100", (int(gpu[2]),), int(gpu[1] or 1))
    raise ConfigError(f"--topology={name} is not known: write it like {NAMES}")


def find(name: str) -> Topology:
    """The devices of a topology such as v5p:4x4x4, v5p:4x4x4*2 or h100:8x8.

    Raises:
      ConfigError: there is no such topology, or its compiler is not installed.
    """
    wanted = shape(name)
    found = (
        _tpu(name.partition("*")[0], wanted.kind, wanted.slices)
        if wanted.is_tpu
        else _gpu(wanted.slices, wanted.chips)
    )
    device = devices.find(found[0].device_kind)
    assert device, f"{found[0].device_kind} is missing in the table of devices"
    return Topology(name, found, wanted.slices, device)


def _tpu(name: str, kind: str, slices: int) -> list[Any]:
    import jax  # here, as it takes seconds and `shape` does without
    from jax.experimental import topologies

    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            "compiling for a TPU needs its compiler: pip install 'sparsecod-jax[tpu]'"
        )
    os.environ.update(NO_TPU_HERE)
    options = TPU_OPTIONS[kind] | ({"num_slices": slices} if slices > 1 else {})
    try:
        return list(topologies.get_topology_desc(name, "tpu", **options).devices)
    except jax.errors.JaxRuntimeError as error:
        if "INVALID_ARGUMENT" not in str(error):
            raise
        raise ConfigError(
            f"--topology={name} is no slice that exists ({str(error).splitlines()[0]}): write it like {NAMES}"
        ) from error


def _gpu(hosts: int, gpus: int) -> list[Any]:
    from jax.experimental import topologies

    if importlib.util.find_spec("jax_cuda13_plugin") is None:
        raise ConfigError(
            "compiling for an H100 needs its compiler: pip install 'sparsecod-jax[gpu]'"
        )
    return list(
        topologies.get_topology_desc(
            "", "cuda", target_config=H100, topology=f"1x{hosts}x{gpus}"
        ).devices
    )
