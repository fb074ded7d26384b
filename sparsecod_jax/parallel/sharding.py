"""Where do arrays live?

Sharding: one mesh whose axes are always all present, and one table from the logical axes that
the model names to the axes of the mesh. Most communication is the compiler's; code that must
place its own enters `shard_map` and speaks of logical axes there too.
"""

import math
from collections.abc import Callable, Sequence

import jax
from flax import linen as nn
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from sparsecod_jax import config

MESH_AXES = ("data", "fsdp", "expert", "tensor")

RULES: dict[str, str | tuple[str, ...] | None] = {
    # Activations
    "batch": ("data", "fsdp", "expert"),
    # Devices that hold the same parameters, beside those of a tensor-parallel team.
    "replicas": "data",
    "length": None,
    "width": None,
    # Parameters and activations
    "heads": "tensor",
    "kv_heads": "tensor",  # replicated where tensor does not divide them
    "hidden": "tensor",
    "vocab": "tensor",
    "table_width": "tensor",  # the embedding table while it is read
    "experts": "expert",
    # Parameters at rest
    "layers": None,
    "embed": ("fsdp", "expert"),
    "expert_embed": "fsdp",
    "router": None,
    # Tensor first, so that gathering over the others leaves contiguous columns.
    "table": ("tensor", "fsdp", "expert"),
    "head_size": None,
    "norm": None,
}


def count_slices(devices: Sequence) -> int:
    """How many groups of devices have a fast network among themselves."""
    return len({getattr(device, "slice_index", 0) for device in devices})


def make_mesh(sizes: config.Mesh, devices: Sequence | None = None) -> jax.sharding.Mesh:
    """The mesh of those sizes, all given.

    Neighbours on an axis are close together, and slices lie along the data axis.
    """
    devices = jax.devices() if devices is None else devices
    slices = count_slices(devices)
    within = (sizes.data // slices, sizes.fsdp, sizes.expert, sizes.tensor)
    if slices == 1:
        arranged = mesh_utils.create_device_mesh(
            within, devices, allow_split_physical_axes=True
        )
    else:
        across = (slices, 1, 1, 1)
        arranged = mesh_utils.create_hybrid_device_mesh(
            within, across, devices, allow_split_physical_axes=True
        )
    axis_types = (AxisType.Auto,) * len(MESH_AXES)
    return jax.sharding.Mesh(arranged, MESH_AXES, axis_types=axis_types)


def spec(
    mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh,
    axes: Sequence[str | None],
    shape: Sequence[int],
) -> P:
    """The partition spec of an array of `shape` with logical `axes` on `mesh`.

    An axis that does not divide is replicated.
    """
    entries = []
    for axis, size in zip(axes, shape, strict=True):
        parts = math.prod(mesh.shape[name] for name in _mesh_axes(axis))
        entry = None
        if axis is not None and size % parts == 0:
            entry = RULES[axis]
        entries.append(entry)
    return P(*entries)


def _mesh_axes(axis: str | None) -> tuple[str, ...]:
    if axis is None:
        return ()
    entry = RULES[axis]
    if isinstance(entry, str):
        return (entry,)
    return entry or ()


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pins an activation to the table's layout; outside a mesh it returns `x`.

    Without these pins the layout is the compiler's to choose: it has replicated whole batches,
    and moves rows from device to device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec(mesh, axes, x.shape))


def shard_map(
    function: Callable,
    in_axes: Sequence[Sequence[str | None]],
    out_axes: Sequence[Sequence[str | None]],
) -> Callable:
    """`function` on each device's part of its arguments, which are laid out by the table.

    Outside a mesh, on the whole.

    Inside, `ways`, `position`, `gather`, `scatter_sum`, `total` and `largest` reach the other
    parts.

    Args:
      in_axes: logical axes of each argument.
      out_axes: logical axes of each result; the function returns a tuple.

    Raises:
      ValueError: an axis does not divide. Only the batch need not: then every device computes
        all of it.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return function

    def mapped(*args):
        in_specs = tuple(
            spec(mesh, axes, arg.shape) for axes, arg in zip(in_axes, args, strict=True)
        )
        layout = {}
        for axes, entries in zip(in_axes, in_specs, strict=True):
            layout |= zip(axes, entries, strict=True)
        _check_divided(mesh, layout)
        out_specs = tuple(P(*(layout[axis] for axis in axes)) for axes in out_axes)
        # check_vma is off because kernels and custom gradients don't declare how their
        # results vary over the mesh.
        return jax.shard_map(
            function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )(*args)

    return mapped


def _check_divided(mesh: jax.sharding.AbstractMesh, layout: dict) -> None:
    """Refuses logical axes that the mesh should split but can't; the batch may stay whole.

    Args:
      layout: from logical axes to entries of a partition spec.
    """
    whole = [axis for axis, entry in layout.items() if entry is None and axis]
    undivided = [axis for axis in whole if axis != "batch" and _split(axis)]
    if undivided:
        raise ValueError(
            f"the axes {undivided} do not divide over the mesh {dict(mesh.shape)}:"
            " `layout` refuses such a model"
        )


def _split(axis: str) -> tuple[str, ...]:
    """The mesh axes that split a logical axis, those of size 1 left out."""
    shape = jax.sharding.get_abstract_mesh().shape
    return tuple(name for name in _mesh_axes(axis) if shape.get(name, 1) > 1)


def ways(axis: str) -> int:
    """Into how many parts a logical axis is split."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape[name] for name in _split(axis))


def position(axis: str) -> jax.Array | int:
    """Which of these parts this device holds."""
    names = _split(axis)
    return jax.lax.axis_index(names) if names else 0


def gather(x: jax.Array, axis: str, dim: int) -> jax.Array:
    """All parts of a logical axis, joined along `dim`."""
    names = _split(axis)
    if not names:
        return x
    return jax.lax.all_gather(x, names, axis=dim, tiled=True)


def scatter_sum(x: jax.Array, axis: str, dim: int) -> jax.Array:
    """The sum over the devices of a logical axis, of which each keeps its part of `dim`."""
    names = _split(axis)
    if not names:
        return x
    return jax.lax.psum_scatter(x, names, scatter_dimension=dim, tiled=True)


def total(x: jax.Array, axis: str) -> jax.Array:
    """The sum over the devices of a logical axis."""
    names = _split(axis)
    return jax.lax.psum(x, names) if names else x


def largest(x: jax.Array, axis: str) -> jax.Array:
    """The largest over the devices of a logical axis."""
    names = _split(axis)
    return jax.lax.pmax(x, names) if names else x


def tree_shardings(mesh: jax.sharding.Mesh, boxed) -> object:
    """Shardings for a tree of abstract arrays.

    Linen's boxes carry logical axes, anything without a box is replicated.
    """

    def is_boxed(leaf) -> bool:
        return isinstance(leaf, nn.LogicallyPartitioned)

    def sharding(leaf) -> NamedSharding:
        if is_boxed(leaf):
            return NamedSharding(mesh, spec(mesh, leaf.names, leaf.value.shape))
        return NamedSharding(mesh, P())

    return jax.tree.map(sharding, boxed, is_leaf=is_boxed)


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Rows of a batch over every device that is not a tensor-parallel partner."""
    return NamedSharding(mesh, P(RULES["batch"]))
