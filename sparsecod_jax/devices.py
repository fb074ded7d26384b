"""What can a device do? Peak arithmetic and memory, by a part of jax's device kind."""

import dataclasses
import re

GIB = 2**30
GPU_SHARE = 0.75  # of its memory, which is what JAX takes unless XLA_CLIENT_MEM_FRACTION says otherwise


@dataclasses.dataclass(frozen=True)
class Device:
    """One device as jax counts them."""

    peak_flops: float  # dense bf16 FLOP/s, never the figure with structured sparsity
    memory: float  # bytes that a program may use as jax starts


DEVICES = {
    "GH200 480GB": Device(989e12, GPU_SHARE * 94 * GIB),  # the figure is the memory of its CPU
    "H100": Device(989e12, GPU_SHARE * 79 * GIB),
    "H200": Device(989e12, GPU_SHARE * 139 * GIB),
    "A100": Device(312e12, GPU_SHARE * 39 * GIB),  # the smaller of two kinds of one name
    "TPU v4": Device(275e12, 30.75 * GIB),
    "TPU v5 lite": Device(197e12, 15.75 * GIB),
    "TPU v5e": Device(197e12, 15.75 * GIB),
    "TPU v5p": Device(459e12, 95.74 * GIB),
    "TPU v5": Device(459e12, 95.74 * GIB),
    "TPU v6": Device(918e12, 31.25 * GIB),
}


def find(device_kind: str) -> Device | None:
    """The device of that kind, None when it is unknown: an MFU is then not stated, and nothing chosen by its memory."""
    found = (device for name, device in DEVICES.items() if re.search(rf"{name}(?!\d)", device_kind, re.IGNORECASE))  # an A1000 is no A100
    return next(found, None)
