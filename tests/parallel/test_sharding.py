"""Which mesh is made, and where each array lives on it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from sparsecod_jax import config
from sparsecod_jax.model.transformer import Transformer
from sparsecod_jax.parallel import sharding
from sparsecod_jax.parallel.sharding import (
    MESH_AXES,
    batch_sharding,
    constrain,
    count_slices,
    make_mesh,
    spec,
    tree_shardings,
)
from sparsecod_jax.tree import names
from tests.support import tiny_configs


def _mesh(*sizes):
    return make_mesh(config.Mesh(*sizes), jax.devices()[: np.prod(sizes)])


@pytest.mark.parametrize(
    "sizes",
    [
        (1, 8, 1, 1),
        (8, 1, 1, 1),
        (2, 2, 1, 2),
        (1, 2, 1, 4),
        (1, 2, 4, 1),
        (1, 2, 2, 2),
    ],
)
def test_a_mesh_has_all_axes_and_all_devices(sizes):
    mesh = make_mesh(config.Mesh(*sizes))
    assert dict(mesh.shape) == dict(zip(MESH_AXES, sizes, strict=True))
    assert mesh.devices.reshape(-1).tolist() == jax.devices()


def test_the_given_devices_are_used():
    mesh = make_mesh(config.Mesh(1, 3, 1, 1), jax.devices()[2:5])
    assert mesh.devices.reshape(-1).tolist() == jax.devices()[2:5]


def test_slices_lie_along_the_data_axis():
    """Only the outer half of the data axis crosses from one slice to the other.

    So it is whatever order the devices come in.
    """
    devices = [
        _InSlice(device, place % 2) for place, device in enumerate(jax.devices())
    ]
    assert (count_slices(devices), count_slices(jax.devices())) == (2, 1)
    for sizes in ((2, 4, 1, 1), (4, 1, 1, 2), (8, 1, 1, 1), (2, 2, 2, 1)):
        arranged = make_mesh(config.Mesh(*sizes), devices).devices
        assert arranged.shape == sizes
        assert [
            {device.slice_index for device in half.flat}
            for half in np.split(arranged, 2)
        ] == [{0}, {1}]
        assert {device.id for device in arranged.flat} == {
            device.id for device in devices
        }


class _InSlice:
    """A CPU device that says in which slice it is."""

    def __init__(self, device, slice_index):
        self._device, self.slice_index = device, slice_index

    def __getattr__(self, name):
        return getattr(self._device, name)


def test_an_axis_that_does_not_divide_is_replicated():
    mesh = _mesh(2, 2, 1, 2)
    assert spec(mesh, ("batch", "length", "width"), (8, 5, 7)) == P(
        ("data", "fsdp", "expert"), None, None
    )
    assert spec(mesh, ("batch", "length", "width"), (6, 5, 7)) == P(None, None, None)
    assert spec(mesh, ("embed", "kv_heads", "head_size"), (32, 2, 8)) == P(
        ("fsdp", "expert"), "tensor", None
    )
    assert spec(mesh, ("embed", "kv_heads", "head_size"), (32, 1, 8)) == P(
        ("fsdp", "expert"), None, None
    )
    assert spec(mesh, ("embed", "hidden"), (33, 48)) == P(None, "tensor")
    assert spec(mesh, (None, "table_width"), (304, 32)) == P(None, "tensor")
    experts = _mesh(1, 2, 4, 1)
    assert spec(experts, ("batch",), (4,)) == P(None)
    assert spec(experts, ("experts", "expert_embed", "hidden"), (4, 6, 7)) == P(
        "expert", "fsdp", "tensor"
    )
    assert spec(experts, ("experts", "expert_embed", "hidden"), (6, 5, 7)) == P(
        None, None, "tensor"
    )
    with pytest.raises(KeyError, match="breadth"):
        spec(mesh, ("breadth",), (8,))
    with pytest.raises(ValueError, match="argument 2 is longer"):
        spec(mesh, ("batch",), (8, 8))


PARAMETERS = {
    "params/blocks/attention/key": P(None, ("fsdp", "expert"), "tensor", None),
    "params/blocks/attention/out": P(None, "tensor", None, ("fsdp", "expert")),
    "params/blocks/attention/query": P(None, ("fsdp", "expert"), "tensor", None),
    "params/blocks/attention/value": P(None, ("fsdp", "expert"), "tensor", None),
    "params/blocks/attention_norm/gain": P(None, None),
    "params/blocks/ffn/down": P(None, "tensor", ("fsdp", "expert")),
    "params/blocks/ffn/gate": P(None, ("fsdp", "expert"), "tensor"),
    "params/blocks/ffn/up": P(None, ("fsdp", "expert"), "tensor"),
    "params/blocks/ffn_norm/gain": P(None, None),
    "params/embedding": P(None, ("tensor", "fsdp", "expert")),
    "params/final_norm/gain": P(None),
    "params/head": P(("fsdp", "expert"), "tensor"),
}
OF_MIXTURE = PARAMETERS | {
    "params/blocks/ffn/down": P(None, "expert", "tensor", "fsdp"),
    "params/blocks/ffn/gate": P(None, "expert", "fsdp", "tensor"),
    "params/blocks/ffn/router": P(None, ("fsdp", "expert"), None),
    "params/blocks/ffn/shared/down": P(None, "tensor", ("fsdp", "expert")),
    "params/blocks/ffn/shared/gate": P(None, ("fsdp", "expert"), "tensor"),
    "params/blocks/ffn/shared/up": P(None, ("fsdp", "expert"), "tensor"),
    "params/blocks/ffn/up": P(None, "expert", "fsdp", "tensor"),
}


def _specs(model, *sizes):
    boxed = jax.eval_shape(
        Transformer(model).init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32)
    )
    shardings = tree_shardings(_mesh(*sizes), boxed)
    return {
        name: leaf.spec
        for name, leaf in zip(names(shardings), jax.tree.leaves(shardings), strict=True)
    }


@pytest.mark.parametrize(
    "sizes",
    [
        (2, 2, 1, 2),
        (1, 4, 1, 2),
        (8, 1, 1, 1),
        (1, 1, 1, 1),
        (1, 2, 2, 2),
        (1, 1, 8, 1),
    ],
)
@pytest.mark.parametrize(
    ("model", "expected"),
    [(tiny_configs.MODEL, PARAMETERS), (tiny_configs.MIXTURE, OF_MIXTURE)],
    ids=["dense", "mixture"],
)
def test_where_each_parameter_lives(model, expected, sizes):
    """The layout goes by names alone, as long as the sizes divide."""
    specs = _specs(model, *sizes)
    assert specs == expected
    for name, entries in specs.items():
        used = [
            axis
            for entry in entries
            if entry is not None
            for axis in ((entry,) if isinstance(entry, str) else entry)
        ]
        assert len(used) == len(set(used)), f"{name} uses a mesh axis twice: {entries}"


def test_multi_query_keys_are_replicated_over_tensor():
    specs = _specs(dataclasses.replace(tiny_configs.MODEL, n_kv_heads=1), 2, 2, 1, 2)
    assert specs["params/blocks/attention/key"] == P(
        None, ("fsdp", "expert"), None, None
    )
    assert specs["params/blocks/attention/query"] == P(
        None, ("fsdp", "expert"), "tensor", None
    )


def test_what_has_no_box_is_replicated():
    mesh = _mesh(2, 2, 1, 2)
    assert tree_shardings(mesh, {"step": jax.ShapeDtypeStruct((8,), jnp.int32)}) == {
        "step": NamedSharding(mesh, P())
    }


def test_constrain_pins_on_a_mesh_and_does_nothing_outside():
    x = jnp.ones((8, 5, 32))
    assert constrain(x, "batch", "length", "width") is x
    mesh = _mesh(2, 1, 2, 2)
    with jax.set_mesh(mesh):
        pinned = jax.jit(lambda x: constrain(2 * x, "batch", "length", "width"))(x)
    assert pinned.sharding.is_equivalent_to(
        NamedSharding(mesh, P(("data", "expert"))), 3
    )
    np.testing.assert_array_equal(pinned, 2 * np.ones((8, 5, 32)))


def test_rows_of_a_batch_go_to_all_but_tensor_partners():
    mesh = _mesh(1, 2, 2, 2)
    batch = jax.device_put(jnp.arange(16).reshape(8, 2), batch_sharding(mesh))
    rows = {
        shard.device: shard.data[:, 0].tolist() for shard in batch.addressable_shards
    }
    for group, partners in enumerate(mesh.devices.reshape(4, 2)):
        for device in partners:
            assert rows[device] == [4 * group, 4 * group + 2]


ALL = ("batch", "experts", "expert_embed", "hidden", "width")


def _on(sizes, function, in_axes, out_axes, *args):
    """The only result of `function` in `shard_map`."""
    with jax.set_mesh(_mesh(*sizes)):
        (result,) = jax.jit(sharding.shard_map(function, in_axes, [out_axes]))(*args)
    return np.asarray(result)


def test_outside_a_mesh_every_axis_has_one_part():
    x = jnp.arange(6.0).reshape(2, 3)
    for axis in ALL:
        assert (sharding.ways(axis), sharding.position(axis)) == (1, 0)
        assert (
            sharding.gather(x, axis, 1)
            is sharding.scatter_sum(x, axis, 0)
            is sharding.total(x, axis)
            is sharding.largest(x, axis)
            is x
        )
    (same,) = sharding.shard_map(
        lambda x: (x,), [("batch", "width")], [("batch", "width")]
    )(x)
    assert same is x


@pytest.mark.parametrize(
    ("sizes", "ways"),
    [
        ((1, 1, 1, 1), (1, 1, 1, 1, 1)),
        ((8, 1, 1, 1), (8, 1, 1, 1, 1)),
        ((1, 1, 8, 1), (8, 8, 1, 1, 1)),
        ((1, 2, 2, 2), (4, 2, 2, 2, 1)),
        ((2, 1, 2, 2), (4, 2, 1, 2, 1)),
    ],
)
def test_each_device_knows_its_part(sizes, ways):
    def parts(x_B):
        assert tuple(sharding.ways(axis) for axis in ALL) == ways
        assert len(x_B) == 8 // ways[0]
        return (
            10 * sharding.position("batch") + sharding.position("experts") + 0 * x_B,
        )

    batch, experts = np.arange(8) * ways[0] // 8, np.arange(8) * ways[0] // 8 % ways[1]
    np.testing.assert_array_equal(
        _on(sizes, parts, [("batch",)], ("batch",), np.zeros(8, int)),
        10 * batch + experts,
    )


SPREAD = [(1, 1, 1, 1), (1, 1, 8, 1), (1, 2, 2, 2), (2, 1, 2, 2), (1, 4, 2, 1)]


@pytest.mark.parametrize("sizes", SPREAD)
def test_gather_joins_the_parts_in_order(sizes):
    """A product over the gathered axis with a factor that every device has whole."""
    rng = np.random.default_rng(0)
    weights_EDF, x_D, rows_B, x_B = (
        rng.integers(0, 9, shape) for shape in ((8, 4, 6), (4,), (8,), (8,))
    )

    def over_width(weights_EDF, x_D):
        return (
            jnp.einsum(
                "edf,d->ef", sharding.gather(weights_EDF, "expert_embed", 1), x_D
            ),
        )

    def over_rows(rows_B, x_B):
        return (sharding.gather(rows_B, "batch", 0) @ x_B,)

    found = _on(
        sizes,
        over_width,
        [("experts", "expert_embed", "hidden"), (None,)],
        ("experts", "hidden"),
        weights_EDF,
        x_D,
    )
    np.testing.assert_array_equal(found, np.einsum("edf,d->ef", weights_EDF, x_D))
    np.testing.assert_array_equal(
        _on(sizes, over_rows, [("batch",), (None,)], (), rows_B, x_B), rows_B @ x_B
    )


@pytest.mark.parametrize("sizes", SPREAD)
def test_rows_come_back_from_the_experts_summed(sizes):
    """Each device of the expert axis adds its own multiple of all rows that it gathered."""
    x_BD = np.arange(16).reshape(8, 2)

    def exchange(x_BD):
        gathered_BD = sharding.gather(x_BD, "experts", 0)
        assert len(gathered_BD) == len(x_BD) * sharding.ways("experts")
        return (
            sharding.scatter_sum(
                (sharding.position("experts") + 1) * gathered_BD, "experts", 0
            ),
        )

    found = _on(sizes, exchange, [("batch", "width")], ("batch", "width"), x_BD)
    np.testing.assert_array_equal(found, x_BD * sum(range(1, sizes[2] + 1)))


@pytest.mark.parametrize("sizes", SPREAD)
def test_total_sums_over_the_devices_of_an_axis(sizes):
    x_BF = np.arange(32).reshape(8, 4)

    def columns(x_BF):
        return (sharding.total(x_BF.sum(axis=0), "batch"),)

    def rows(x_BF):
        return (sharding.total(x_BF.sum(axis=1), "hidden"),)

    np.testing.assert_array_equal(
        _on(sizes, columns, [("batch", "hidden")], ("hidden",), x_BF), x_BF.sum(axis=0)
    )
    np.testing.assert_array_equal(
        _on(sizes, rows, [("batch", "hidden")], ("batch",), x_BF), x_BF.sum(axis=1)
    )


@pytest.mark.parametrize("sizes", SPREAD)
def test_largest_is_that_of_all_devices_of_an_axis(sizes):
    x_BF = np.random.default_rng(0).permutation(32).reshape(8, 4)

    def columns(x_BF):
        return (sharding.largest(x_BF.max(axis=0), "batch"),)

    def rows(x_BF):
        return (sharding.largest(x_BF.max(axis=1), "hidden"),)

    np.testing.assert_array_equal(
        _on(sizes, columns, [("batch", "hidden")], ("hidden",), x_BF), x_BF.max(axis=0)
    )
    np.testing.assert_array_equal(
        _on(sizes, rows, [("batch", "hidden")], ("batch",), x_BF), x_BF.max(axis=1)
    )


@pytest.mark.parametrize(("rows", "here"), [(8, 2), (6, 6)])
def test_a_batch_that_does_not_divide_comes_whole(rows, here):
    """Forward and gradient, where a whole batch must not count once a device."""
    x_BD = np.arange(rows * 3.0, dtype=np.float32).reshape(rows, 3)

    def square(x_BD):
        assert len(x_BD) == here
        return (x_BD**2,)

    with jax.set_mesh(_mesh(1, 2, 2, 2)):
        mapped = sharding.shard_map(square, [("batch", "width")], [("batch", "width")])
        value, gradient = jax.jit(jax.value_and_grad(lambda x: mapped(x)[0].sum()))(
            x_BD
        )
    np.testing.assert_allclose(value, (x_BD**2).sum())
    np.testing.assert_allclose(gradient, 2 * x_BD)


def test_mapped_code_is_never_given_a_parameter_that_does_not_divide():
    with (
        jax.set_mesh(_mesh(1, 1, 8, 1)),
        pytest.raises(
            ValueError, match=r"the axes \['experts'\] do not divide over the mesh"
        ),
    ):
        sharding.shard_map(lambda w: (w,), [("experts", None)], [("experts", None)])(
            jnp.ones((6, 3))
        )
