"""What can a device do? Chips: one row for each kind, with peak FLOPs, memory and names.

Plain data, which needs no jax. A new chip is a new row of `CHIPS`.
"""

import dataclasses
import os
import re

from sparsecod_jax.errors import ConfigError

GIB = 2**30
# Variables that set which share of a GPU's memory jax takes, now and formerly.
SHARES = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
GPU_SHARE = 0.75  # what jax takes if neither is set


@dataclasses.dataclass(frozen=True)
class Tpu:
    """What only a TPU has: the shape of its slices, and the names of its VMs in Google Cloud."""

    dimensions: int  # of a slice: sides in its name
    vm_type: str  # accelerator type, before the number
    vm_cores: int  # how many that number counts for each chip
    vm_runtime: str  # runtime version
    compiler_options: tuple[tuple[str, str], ...] = ()  # to describe absent slices


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of TPU or GPU. What jax counts as a device is one chip."""

    name: str  # in topologies
    device_kind: str  # regular expression for a part of jax's device kind
    platform: str  # tpu or gpu
    peak_flops: float  # dense bf16 FLOP/s, never the figure with structured sparsity
    memory: float  # bytes that a program may use; on GPUs jax takes a share of them
    gke_accelerator: str = ""  # value of the label of GKE's nodes
    tpu: Tpu | None = None
    gpu_target: str = ""  # text with which XLA describes an absent GPU

    @property
    def has_topologies(self) -> bool:
        """Whether programs can be compiled for it where it is absent."""
        return self.tpu is not None or bool(self.gpu_target)


H100_TARGET = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84929347584 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 12 } runtime_version { major: 13 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""

# The first row that matches a device kind is taken.
CHIPS = (
    Chip(
        name="v4",
        device_kind="TPU v4",
        platform="tpu",
        peak_flops=275e12,
        memory=30.75 * GIB,
        gke_accelerator="tpu-v4-podslice",
        tpu=Tpu(
            dimensions=3,
            vm_type="v4",
            vm_cores=2,
            vm_runtime="tpu-ubuntu2204-base",
            # Megacore: both cores of a chip are one device.
            compiler_options=(("chip_config_name", "megacore"),),
        ),
    ),
    Chip(
        name="v5e",
        device_kind="TPU v5 lite|TPU v5e",
        platform="tpu",
        peak_flops=197e12,
        memory=15.75 * GIB,
        gke_accelerator="tpu-v5-lite-podslice",
        tpu=Tpu(
            dimensions=2,
            vm_type="v5litepod",
            vm_cores=1,
            vm_runtime="v2-alpha-tpuv5-lite",
        ),
    ),
    Chip(
        name="v5p",
        device_kind="TPU v5p?",
        platform="tpu",
        peak_flops=459e12,
        memory=95.74 * GIB,
        gke_accelerator="tpu-v5p-slice",
        tpu=Tpu(
            dimensions=3,
            vm_type="v5p",
            vm_cores=2,
            vm_runtime="v2-alpha-tpuv5",
        ),
    ),
    Chip(
        name="v6e",
        device_kind="TPU v6",
        platform="tpu",
        peak_flops=918e12,
        memory=31.25 * GIB,
        gke_accelerator="tpu-v6e-slice",
        tpu=Tpu(
            dimensions=2,
            vm_type="v6e",
            vm_cores=1,
            vm_runtime="v2-alpha-tpuv6e",
        ),
    ),
    Chip(
        name="h100",
        device_kind="H100",
        platform="gpu",
        peak_flops=989e12,
        memory=79 * GIB,
        gke_accelerator="nvidia-h100-80gb",
        gpu_target=H100_TARGET,
    ),
    Chip(
        name="gh200",
        device_kind="GH200 480GB",  # the figure is the memory of its CPU
        platform="gpu",
        peak_flops=989e12,
        memory=94 * GIB,
    ),
    Chip(
        name="h200",
        device_kind="H200",
        platform="gpu",
        peak_flops=989e12,
        memory=139 * GIB,
    ),
    Chip(
        name="a100",
        device_kind="A100",
        platform="gpu",
        peak_flops=312e12,
        memory=39 * GIB,  # the smaller of two kinds of one name
    ),
)


def find(device_kind: str) -> Chip | None:
    """The chip of that device kind, its memory as jax starts.

    None when it is unknown: an MFU is then not stated, and nothing chosen by its memory.

    Raises:
      ConfigError: it is a GPU, and a variable that sets how much of its memory jax takes
        is no number.
    """
    for chip in CHIPS:
        # No digit may follow: an A1000 is no A100.
        if re.search(rf"(?:{chip.device_kind})(?!\d)", device_kind, re.IGNORECASE):
            return _with_jax_memory(chip)
    return None


def _with_jax_memory(chip: Chip) -> Chip:
    if chip.platform != "gpu":
        return chip
    _, share = gpu_share()
    return dataclasses.replace(chip, memory=share * chip.memory)


def gpu_share(default: float = GPU_SHARE) -> tuple[str, float]:
    """The variable that sets which share of a GPU's memory jax takes, and that share.

    Raises:
      ConfigError: it is no number, or both variables are set. Either way jax would only warn,
        and continue without the GPU.
    """
    names = [name for name in SHARES if os.environ.get(name)]
    if len(names) > 1:
        raise ConfigError(
            f"{' and '.join(names)} are both set, where jax takes only one:"
            " unset the latter"
        )
    if not names:
        return SHARES[0], default
    (name,) = names
    try:
        return name, float(os.environ[name])
    except ValueError as error:
        raise ConfigError(
            f"{name}={os.environ[name]} is not a number: write it like 0.9, or unset it"
        ) from error
