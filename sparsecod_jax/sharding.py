"""Where do arrays live?

One mesh whose axes are always all present, and one table from the logical axes that the model names to the axes of the mesh.
"""

import math
from collections.abc import Sequence

import jax
from flax import linen as nn
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from sparsecod_jax import config
from sparsecod_jax.errors import ConfigError

MESH_AXES = ("data", "fsdp", "tensor")

RULES: dict[str, str | tuple[str, ...] | None] = {
    # Activations
    "batch": ("data", "fsdp"),
    "length": None,
    "width": None,
    # Parameters and activations
    "heads": "tensor",
    "kv_heads": "tensor",  # replicated where tensor does not divide them
    "hidden": "tensor",
    "vocab": "tensor",
    "table_width": "tensor",  # the embedding table while it is read
    # Parameters at rest
    "layers": None,
    "embed": "fsdp",
    "table": ("tensor", "fsdp"),  # tensor first, so that gathering over fsdp leaves contiguous columns
    "head_size": None,
    "norm": None,
}


def make_mesh(mesh: config.Mesh, devices: Sequence | None = None) -> jax.sharding.Mesh:
    """The device mesh that `mesh` asks for.

    Raises:
      ConfigError: the product of the axes is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [getattr(mesh, axis) for axis in MESH_AXES]
    known = math.prod(size for size in sizes if size != -1)
    sizes = [len(devices) // known if size == -1 else size for size in sizes]
    if math.prod(sizes) != len(devices):
        asked = ", ".join(f"mesh.{axis}={getattr(mesh, axis)}" for axis in MESH_AXES)
        raise ConfigError(f"{asked} does not multiply to the {len(devices)} devices here: change the axes, or set one to -1")
    return jax.make_mesh(sizes, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES), devices=devices)


def check_fit(experiment: config.Experiment, mesh: jax.sharding.Mesh) -> None:
    """Refuses a model or batch that this mesh can't divide.

    Raises:
      ConfigError: names the size and the axis.
    """
    model, shape = experiment.model, dict(mesh.shape)
    rows = experiment.global_batch // experiment.execution.accumulation
    checks = [
        ("global_batch / execution.accumulation", rows, ("data", "fsdp")),
        ("evaluation.batch_size", experiment.evaluation.batch_size, ("data", "fsdp")),
        ("model.n_heads", model.n_heads, ("tensor",)),
        ("model.d_ff", model.d_ff, ("tensor",)),
        ("model.vocab_size", model.vocab_size, ("tensor",)),
        ("model.d_model", model.d_model, ("fsdp", "tensor")),
    ]
    for name, size, axes in checks:
        ways = math.prod(shape[axis] for axis in axes)
        if size % ways:
            raise ConfigError(f"{name}={size} is not a multiple of {ways} (mesh.{' x mesh.'.join(axes)}): change one of them")


def spec(mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh, axes: Sequence[str | None], shape: Sequence[int]) -> P:
    """The partition spec of an array of `shape` with logical `axes` on `mesh`; an axis that does not divide is replicated."""
    entries = []
    for axis, size in zip(axes, shape, strict=True):
        entry = RULES[axis] if axis is not None else None
        ways = math.prod(mesh.shape[name] for name in ((entry,) if isinstance(entry, str) else entry or ()))
        entries.append(entry if size % ways == 0 else None)
    return P(*entries)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pins an activation to the table's layout; outside a mesh it returns `x`.

    Without these pins the compiler replicates activations: a 1.2 B model needed 70 GiB a chip instead of 4.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec(mesh, axes, x.shape))


def tree_shardings(mesh: jax.sharding.Mesh, boxed) -> object:
    """Shardings for a tree of abstract arrays: Linen's boxes carry logical axes, anything without a box is replicated."""

    def sharding(leaf) -> NamedSharding:
        if isinstance(leaf, nn.LogicallyPartitioned):
            return NamedSharding(mesh, spec(mesh, leaf.names, leaf.value.shape))
        return NamedSharding(mesh, P())

    return jax.tree.map(sharding, boxed, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned))


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Rows of a batch over every device that is not a tensor-parallel partner."""
    return NamedSharding(mesh, P(RULES["batch"]))
