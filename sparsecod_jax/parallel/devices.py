"""What can a device do? Peak arithmetic and memory, by a part of jax's device kind."""

import dataclasses
import os
import re

from sparsecod_jax.errors import ConfigError

GIB = 2**30
# How jax is told which part of a GPU's memory to take, now and formerly, and what it takes untold.
SHARES = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
GPU_SHARE = 0.75


@dataclasses.dataclass(frozen=True)
class Device:
    """One device as jax counts them."""

    peak_flops: float  # dense bf16 FLOP/s, never the figure with structured sparsity
    memory: float  # bytes that a program may use as jax starts


GPUS = {
    "GH200 480GB": Device(989e12, 94 * GIB),  # the figure is the memory of its CPU
    "H100": Device(989e12, 79 * GIB),
    "H200": Device(989e12, 139 * GIB),
    "A100": Device(312e12, 39 * GIB),  # the smaller of two kinds of one name
}
TPUS = {
    "TPU v4": Device(275e12, 30.75 * GIB),
    "TPU v5 lite": Device(197e12, 15.75 * GIB),
    "TPU v5e": Device(197e12, 15.75 * GIB),
    "TPU v5p": Device(459e12, 95.74 * GIB),
    "TPU v5": Device(459e12, 95.74 * GIB),
    "TPU v6": Device(918e12, 31.25 * GIB),
}


def find(device_kind: str) -> Device | None:
    """The device of that kind, None when it is unknown: an MFU is then not stated, and nothing chosen by its memory.

    Raises:
      ConfigError: it is a GPU, and a variable that says how much of its memory jax takes is no number.
    """
    gpu = _named(GPUS, device_kind)
    if gpu:
        _, share = gpu_share()
        return dataclasses.replace(gpu, memory=share * gpu.memory)
    return _named(TPUS, device_kind)


def _named(table: dict[str, Device], device_kind: str) -> Device | None:
    found = (
        device
        for name, device in table.items()
        if re.search(rf"{name}(?!\d)", device_kind, re.IGNORECASE)
    )  # an A1000 is no A100
    return next(found, None)


def gpu_share(default: float = GPU_SHARE) -> tuple[str, float]:
    """The variable that says which part of a GPU's memory jax takes, and that part.

    Raises:
      ConfigError: it is no number, or both variables say one. Either way jax would only warn, and go on without the GPU.
    """
    told_by = [name for name in SHARES if os.environ.get(name)]
    if len(told_by) > 1:
        raise ConfigError(
            f"{' and '.join(told_by)} are both set, where jax takes only one: unset the latter"
        )
    name = told_by[0] if told_by else SHARES[0]
    told = os.environ.get(name) or default
    try:
        return name, float(told)
    except ValueError as error:
        raise ConfigError(
            f"{name}={told} is not a number: write it like 0.9, or unset it"
        ) from error
