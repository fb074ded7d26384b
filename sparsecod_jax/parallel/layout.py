"""How are model and batch divided over these devices?

Layouts: what a config leaves open is chosen here, and what can't work is refused.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from sparsecod_jax import config
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.parallel import devices
from sparsecod_jax.parallel.self_check import check_compiler
from sparsecod_jax.parallel.sharding import MESH_AXES, count_slices

# Over a whole slice of 64 or more the compiler for TPU gathers by all-reduce, which sends twice
# as much (docs/log.md).
FSDP_WAYS = 32

# Share of a device's memory for the residual stream that a microbatch keeps between blocks.
STREAM_SHARE = 1 / 8

# Attention scores per block that a microbatch may have on a CPU, so that they stay in a cache
# (docs/log.md).
CPU_SCORES = 2**17

CUDNN_LARGEST_HEAD = 128


@dataclasses.dataclass(frozen=True)
class Layout:
    """How an experiment is carried out on given devices, nothing left open."""

    mesh: config.Mesh  # the size of every axis
    microbatches: int  # per step
    kernels: config.Kernels

    def decided(self, execution: config.Execution) -> config.Execution:
        """The config with what was chosen in place of what it leaves open, for records."""
        chosen = dataclasses.asdict(self.kernels)
        return dataclasses.replace(execution, accumulation=self.microbatches, **chosen)


def resolve(
    experiment: config.Experiment, on: Sequence[Any], slices: int = 0
) -> Layout:
    """The layout of an experiment on the devices `on`.

    Args:
      slices: in how many slices the devices lie; 0 takes it from the devices.

    Raises:
      ConfigError: no mesh of these devices divides model and batch, or they lack the kernel
        that the config names.
    """
    execution = experiment.execution
    rows = experiment.global_batch // (execution.accumulation or 1)
    mesh = choose_mesh(experiment.model, rows, experiment.mesh, on, slices)
    microbatches = execution.accumulation or _microbatches(experiment, mesh, on[0])
    attention = _attention(experiment, on[0])
    kernels = config.Kernels(attention, execution.remat, execution.unroll)
    return Layout(mesh, microbatches, kernels)


def choose_mesh(
    model: config.Model,
    rows: int,
    wanted: config.Mesh,
    on: Sequence[Any],
    slices: int = 0,
) -> config.Mesh:
    """The sizes of all mesh axes for the devices `on`.

    Those that the config gives, and for the others what divides model and batch.

    Preferred are tensor 1, then expert 1, as FSDP communicates what computing hides best, then
    the largest fsdp up to FSDP_WAYS. Between slices, which have a slow network between them,
    runs only the data axis.

    Args:
      wanted: the mesh of the config, 0 on each axis that is to be chosen.
      rows: of a microbatch, over all devices; where their number is open, of the whole batch.
      slices: as for `resolve`.

    Raises:
      ConfigError: no mesh of these devices divides model and batch; names a size and an axis.
    """
    slices = slices or count_slices(on)
    candidates = sorted(_candidates(wanted, len(on), slices), key=_preference)
    if not candidates:
        across = ""
        if slices > 1:
            across = f" with mesh.data a multiple of the {slices} slices"
        raise ConfigError(
            f"{', '.join(_given(wanted))} does not multiply to the {len(on)} devices here"
            f"{across}: change an axis, or set it to 0 to have it chosen"
        )
    for mesh in candidates:
        if _misfit(model, rows, mesh) is None:
            return mesh
    others = ""
    if len(candidates) > 1:
        others = f", as no other mesh of the {len(on)} devices fits either"
    misfit = _misfit(model, rows, candidates[0])
    raise ConfigError(f"{misfit}: change one of them{others}")


def _given(mesh: config.Mesh) -> list[str]:
    """The axes with a size in the config, as it spells them."""
    sizes = dataclasses.asdict(mesh)
    return [f"mesh.{axis}={size}" for axis, size in sizes.items() if size]


def _candidates(wanted: config.Mesh, count: int, slices: int) -> Iterator[config.Mesh]:
    """Every mesh of `count` devices with the sizes that the config gives."""
    divisors = [size for size in range(1, count + 1) if count % size == 0]
    given = (getattr(wanted, axis) for axis in MESH_AXES)
    axes = ([size] if size else divisors for size in given)
    for sizes in itertools.product(*axes):
        if math.prod(sizes) == count and sizes[0] % slices == 0:
            yield config.Mesh(*sizes)


def _preference(mesh: config.Mesh) -> tuple:
    return mesh.tensor, mesh.expert, mesh.fsdp > FSDP_WAYS, mesh.data


def _misfit(model: config.Model, rows: int, mesh: config.Mesh) -> str | None:
    """The first thing that a mesh can't divide."""
    sizes = dataclasses.asdict(mesh)
    if sizes["expert"] > 1 and not model.n_experts:
        return f"mesh.expert={sizes['expert']} but model.n_experts=0"
    for name, size, axes in (
        ("global_batch / execution.accumulation", rows, ("data", "fsdp", "expert")),
        ("model.n_heads", model.n_heads, ("tensor",)),
        ("model.d_ff", model.d_ff, ("tensor",)),
        ("model.d_shared", model.d_shared, ("tensor",)),
        ("model.n_experts", model.n_experts, ("expert",)),
        ("model.vocab_size", model.vocab_size, ("tensor",)),
        ("model.d_model", model.d_model, ("fsdp", "expert", "tensor")),
    ):
        ways = math.prod(sizes[axis] for axis in axes)
        if size % ways:
            product = " x ".join(f"mesh.{axis}" for axis in axes)
            return f"{name}={size} is not a multiple of {ways} ({product})"
    return None


def _microbatches(experiment: config.Experiment, mesh: config.Mesh, device) -> int:
    """The fewest microbatches of which one fits the device.

    On an accelerator the residual stream, kept once per block for the backward pass, takes at
    most STREAM_SHARE of the memory; on a CPU a block has at most CPU_SCORES. The load-balance
    loss of a MoE is one over each microbatch, so there the devices may not choose their number.
    """
    model = experiment.model
    length = experiment.data.seq_len
    chip = devices.find(device.device_kind)
    if model.n_experts or not (chip or device.platform == "cpu"):
        return 1
    if chip:
        itemsize = np.dtype(model.residual_dtype).itemsize
        row_bytes = model.n_layers * length * model.d_model * itemsize
        most_rows = STREAM_SHARE * chip.memory / row_bytes
    else:
        most_rows = CPU_SCORES / (model.n_heads * length**2)
    rows = experiment.global_batch // (mesh.data * mesh.fsdp * mesh.expert)
    for count in range(1, rows + 1):
        if rows % count == 0 and rows // count <= most_rows:
            return count
    return rows


def _attention(experiment: config.Experiment, device) -> config.AttentionKernel:
    """The kernel of the config; for `auto` the platform's own, where it serves the model.

    It must serve the head size and the dtype.
    """
    kernel = experiment.execution.attention
    own = _own_attention(device)
    if kernel in ("splash", "cudnn") and kernel != own:
        needed = {"splash": "a TPU", "cudnn": "an NVIDIA GPU"}[kernel]
        raise ConfigError(
            f"execution.attention={kernel} needs {needed}, this is a {device.platform}:"
            " set execution.attention=auto"
        )
    if kernel != "auto":
        return kernel
    model = experiment.model
    if own is None or model.compute_dtype != "bfloat16":
        return "xla"
    if own == "cudnn" and model.head_dim > CUDNN_LARGEST_HEAD:
        return "xla"
    return own


def _own_attention(device) -> config.AttentionKernel | None:
    """The kernel that only this platform has, if any."""
    if device.platform == "tpu":
        return "splash"
    if device.device_kind.startswith("NVIDIA"):
        return "cudnn"
    return None


def check_platform(model: config.Model) -> None:
    """Refuses a platform that computes wrongly, or in less precision than the model asks for.

    Raises:
      ConfigError: the compiler is wrong, or JAX would compute float64 as float32.
    """
    check_compiler()
    has_float64 = "float64" in (model.compute_dtype, model.residual_dtype)
    if has_float64 and not jax.config.read("jax_enable_x64"):
        raise ConfigError(
            "float64 is computed as float32 unless JAX is told otherwise:"
            " set the environment variable JAX_ENABLE_X64=1"
        )


def describe(layout: Layout, experiment: config.Experiment) -> str:
    """One line for people: what was chosen for `experiment`, and why."""
    mesh, kernels = layout.mesh, layout.kernels
    sizes = {axis: getattr(mesh, axis) for axis in MESH_AXES}
    axes = " x ".join(f"{axis} {size}" for axis, size in sizes.items() if size > 1)
    row_groups = mesh.data * mesh.fsdp * mesh.expert
    rows = experiment.global_batch // (layout.microbatches * row_groups)
    loop = " blocks one by one;" if kernels.unroll else ""
    return (
        f"mesh {axes or 'one device'} ({_reason(mesh, experiment)});"
        f" microbatches {layout.microbatches} of {rows} rows a device;"
        f"{loop} remat {kernels.remat}; attention by {kernels.attention}"
    )


def _reason(mesh: config.Mesh, experiment: config.Experiment) -> str:
    given = _given(experiment.mesh)
    if given:
        return f"as {', '.join(given)} asks"
    count = math.prod(dataclasses.asdict(mesh).values())
    fsdp = math.gcd(count, FSDP_WAYS)
    rows = experiment.global_batch // (experiment.execution.accumulation or 1)
    usual = config.Mesh(data=count // fsdp, fsdp=fsdp, expert=1, tensor=1)
    misfit = _misfit(experiment.model, rows, usual)
    return misfit or f"FSDP within a slice, at most {FSDP_WAYS} ways"
