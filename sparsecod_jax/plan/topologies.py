"""Which devices would be there? Topologies: TPU slices and GPU hosts by name.

They are described to the compiler, which needs no chip to compile for them.
"""

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

from sparsecod_jax.errors import ConfigError
from sparsecod_jax.parallel import devices
from sparsecod_jax.parallel.devices import CHIPS, Chip, Tpu

EXAMPLES = (
    "v4:2x2x2, v5p:4x4x4, v5e:4x4, v6e:8x8, h100:8 (GPUs of a host),"
    " h100:8x8 (hosts x GPUs), v5p:4x4x4*2 (two slices)"
)

# Without these the compiler lets only one process compile at a time, looks for the
# metadata server of a TPU VM, and warns of its absence.
NO_TPU_HERE = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
}

CHIPS_PER_TPU_HOST = 4  # 2x2 of a slice; hosts with eight are not used

SIZE = r"[1-9]\d*"


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for."""

    name: str
    devices: list[Any]
    slices: int  # groups with a fast network among themselves: TPU slices, GPU hosts
    chip: Chip


@dataclasses.dataclass(frozen=True)
class Shape:
    """What the name of a topology states, known without a compiler."""

    chip: Chip
    sides: tuple[int, ...]  # of a TPU slice, in chips; of a GPU host, its GPUs
    slices: int  # TPU slices or GPU hosts

    @property
    def is_tpu(self) -> bool:
        """Whether these are slices of a TPU, not hosts of GPUs."""
        return self.chip.tpu is not None

    @property
    def chips(self) -> int:
        """Chips per slice."""
        return math.prod(self.sides)

    @property
    def chips_per_host(self) -> int:
        """Chips that one host has; a GPU host is a slice of its own."""
        return CHIPS_PER_TPU_HOST if self.is_tpu else self.chips

    @property
    def hosts(self) -> int:
        """Hosts per slice."""
        return self.chips // self.chips_per_host


def shape(name: str) -> Shape:
    """The size of a topology such as v5p:4x4x4, v5p:4x4x4*2 or h100:8x8.

    Raises:
      ConfigError: the name is not of this form, or not of whole hosts.
    """
    chip_name, _, size = name.partition(":")
    for chip in CHIPS:
        if chip.name == chip_name and chip.has_topologies:
            found = _shape_of(chip, size)
            if found:
                return found
    raise ConfigError(f"--topology={name} is not known: write it like {EXAMPLES}")


def _shape_of(chip: Chip, size: str) -> Shape | None:
    """The shape that the part behind the colon names, None where it names none."""
    if chip.tpu:
        return _tpu_shape(chip, chip.tpu.dimensions, size)
    return _gpu_shape(chip, size)


def _tpu_shape(chip: Chip, dimensions: int, size: str) -> Shape | None:
    sides_pattern = "x".join([SIZE] * dimensions)
    match = re.fullmatch(rf"({sides_pattern})(?:\*({SIZE}))?", size)
    if not match:
        return None
    sides = tuple(int(side) for side in match[1].split("x"))
    if sides[0] % 2 or sides[1] % 2:
        raise ConfigError(
            f"--topology={chip.name}:{size} is no slice that exists (hosts have 2x2 chips):"
            f" write it like {EXAMPLES}"
        )
    return Shape(chip, sides, slices=int(match[2] or 1))


def _gpu_shape(chip: Chip, size: str) -> Shape | None:
    match = re.fullmatch(rf"(?:({SIZE})x)?({SIZE})", size)
    if not match:
        return None
    return Shape(chip, sides=(int(match[2]),), slices=int(match[1] or 1))


def find(name: str) -> Topology:
    """The devices of a topology such as v5p:4x4x4, v5p:4x4x4*2 or h100:8x8.

    Raises:
      ConfigError: there is no such topology, or its compiler is not installed.
    """
    wanted = shape(name)
    if wanted.chip.tpu:
        slice_name = name.partition("*")[0]
        found = _tpu_devices(slice_name, wanted.chip.tpu, wanted.slices)
    else:
        found = _gpu_devices(wanted)
    # By device kind, which accounts for the share of a GPU's memory that jax takes.
    chip = devices.find(found[0].device_kind)
    assert chip, f"{found[0].device_kind} is missing in the table of chips"
    return Topology(name, found, wanted.slices, chip)


def _tpu_devices(slice_name: str, tpu: Tpu, slices: int) -> list[Any]:
    """Devices of one or several slices of that name, by the compiler for TPU."""
    import jax  # here, as it takes seconds and `shape` does without
    from jax.experimental import topologies

    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            "compiling for a TPU needs its compiler: pip install 'sparsecod-jax[tpu]'"
        )
    os.environ.update(NO_TPU_HERE)
    options: dict[str, Any] = dict(tpu.compiler_options)
    if slices > 1:
        options["num_slices"] = slices
    try:
        described = topologies.get_topology_desc(slice_name, "tpu", **options)
    except jax.errors.JaxRuntimeError as error:
        if "INVALID_ARGUMENT" not in str(error):
            raise
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"--topology={slice_name} is no slice that exists ({reason}):"
            f" write it like {EXAMPLES}"
        ) from error
    return list(described.devices)


def _gpu_devices(wanted: Shape) -> list[Any]:
    """Devices that XLA's text about an absent GPU describes."""
    from jax.experimental import topologies

    if importlib.util.find_spec("jax_cuda13_plugin") is None:
        raise ConfigError(
            "compiling for a GPU needs its compiler: pip install 'sparsecod-jax[gpu]'"
        )
    described = topologies.get_topology_desc(
        "",
        "cuda",
        target_config=wanted.chip.gpu_target,
        topology=f"1x{wanted.slices}x{wanted.chips}",
    )
    return list(described.devices)
