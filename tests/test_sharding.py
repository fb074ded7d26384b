"""Which mesh is made, what it refuses, and where each array lives on it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from sparsecod_jax import config
from sparsecod_jax.digest import names
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.model import Transformer
from sparsecod_jax.sharding import MESH_AXES, batch_sharding, check_fit, constrain, make_mesh, spec, tree_shardings


def _mesh(*sizes):
    return make_mesh(config.Mesh(*sizes), jax.devices()[: np.prod(sizes)])


@pytest.mark.parametrize(
    ("asked", "sizes"),
    [
        ((1, -1, 1), (1, 8, 1)),
        ((-1, 1, 1), (8, 1, 1)),
        ((2, -1, 2), (2, 2, 2)),
        ((1, 2, -1), (1, 2, 4)),
        ((8, -1, 1), (8, 1, 1)),
        ((2, 2, 2), (2, 2, 2)),
    ],
)
def test_minus_one_takes_the_devices_that_remain(asked, sizes):
    mesh = make_mesh(config.Mesh(*asked))
    assert dict(mesh.shape) == dict(zip(MESH_AXES, sizes, strict=True))
    assert mesh.devices.reshape(-1).tolist() == jax.devices()


def test_the_given_devices_are_used():
    mesh = make_mesh(config.Mesh(1, -1, 1), jax.devices()[2:5])
    assert mesh.devices.reshape(-1).tolist() == jax.devices()[2:5]


@pytest.mark.parametrize("asked", [(3, 1, 1), (3, -1, 1), (16, -1, 1), (1, 1, 1), (2, 2, 4)])
def test_a_product_that_is_not_the_number_of_devices_is_refused(asked):
    wanted = ", ".join(f"mesh.{axis}={size}" for axis, size in zip(MESH_AXES, asked, strict=True))
    with pytest.raises(ConfigError, match=rf"^{re.escape(wanted)} does not multiply to the 8 devices here: "):
        make_mesh(config.Mesh(*asked))


@pytest.mark.parametrize(
    ("sections", "sizes", "sentence"),
    [
        (
            {"global_batch": 12},
            (2, 4, 1),
            r"^global_batch / execution\.accumulation=12 is not a multiple of 8 \(mesh\.data x mesh\.fsdp\): ",
        ),
        ({"execution": {"accumulation": 4}}, (2, 2, 2), r"^global_batch / execution\.accumulation=2 is not a multiple of 4 "),
        ({"evaluation": {"batch_size": 6}}, (1, 4, 2), r"^evaluation\.batch_size=6 is not a multiple of 4 "),
        ({"model": {"n_heads": 6, "head_dim": 4}}, (1, 2, 4), r"^model\.n_heads=6 is not a multiple of 4 \(mesh\.tensor\): "),
        ({"model": {"d_ff": 50}}, (1, 2, 4), r"^model\.d_ff=50 is not a multiple of 4 \(mesh\.tensor\): "),
        ({"model": {"vocab_size": 303}}, (1, 4, 2), r"^model\.vocab_size=303 is not a multiple of 2 \(mesh\.tensor\): "),
        ({"model": {"d_model": 36}}, (1, 4, 2), r"^model\.d_model=36 is not a multiple of 8 \(mesh\.fsdp x mesh\.tensor\): "),
    ],
)
def test_sizes_that_the_mesh_can_not_divide_are_refused(sections, sizes, sentence):
    experiment = tiny.experiment(**sections)
    with pytest.raises(ConfigError, match=sentence):
        check_fit(experiment, _mesh(*sizes))
    check_fit(experiment, _mesh(1, 1, 1))


def test_key_and_value_heads_need_not_divide():
    check_fit(tiny.experiment(model={"n_kv_heads": 1}), _mesh(1, 2, 4))


def test_an_axis_that_does_not_divide_is_replicated():
    mesh = _mesh(2, 2, 2)
    assert spec(mesh, ("batch", "length", "width"), (8, 5, 7)) == P(("data", "fsdp"), None, None)
    assert spec(mesh, ("batch", "length", "width"), (6, 5, 7)) == P(None, None, None)
    assert spec(mesh, ("embed", "kv_heads", "head_size"), (32, 2, 8)) == P("fsdp", "tensor", None)
    assert spec(mesh, ("embed", "kv_heads", "head_size"), (32, 1, 8)) == P("fsdp", None, None)
    assert spec(mesh, ("embed", "hidden"), (33, 48)) == P(None, "tensor")
    assert spec(mesh, (None, "table_width"), (304, 32)) == P(None, "tensor")
    with pytest.raises(KeyError, match="breadth"):
        spec(mesh, ("breadth",), (8,))
    with pytest.raises(ValueError, match="argument 2 is longer"):
        spec(mesh, ("batch",), (8, 8))


PARAMETERS = {
    "params/blocks/attention/key": P(None, "fsdp", "tensor", None),
    "params/blocks/attention/out": P(None, "tensor", None, "fsdp"),
    "params/blocks/attention/query": P(None, "fsdp", "tensor", None),
    "params/blocks/attention/value": P(None, "fsdp", "tensor", None),
    "params/blocks/attention_norm/gain": P(None, None),
    "params/blocks/ffn/down": P(None, "tensor", "fsdp"),
    "params/blocks/ffn/gate": P(None, "fsdp", "tensor"),
    "params/blocks/ffn/up": P(None, "fsdp", "tensor"),
    "params/blocks/ffn_norm/gain": P(None, None),
    "params/embedding": P(None, ("tensor", "fsdp")),
    "params/final_norm/gain": P(None),
    "params/head": P("fsdp", "tensor"),
}


def _specs(*sizes, **change):
    model = Transformer(tiny.experiment(model=change).model)
    boxed = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32))
    shardings = tree_shardings(_mesh(*sizes), boxed)
    return {name: leaf.spec for name, leaf in zip(names(shardings), jax.tree.leaves(shardings), strict=True)}


@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 4, 2), (8, 1, 1), (1, 1, 1)])
def test_where_each_parameter_lives(sizes):
    """The layout goes by names alone, as long as the sizes divide."""
    specs = _specs(*sizes)
    assert specs == PARAMETERS
    for name, entries in specs.items():
        used = [axis for entry in entries if entry is not None for axis in ((entry,) if isinstance(entry, str) else entry)]
        assert len(used) == len(set(used)), f"{name} uses a mesh axis twice: {entries}"


def test_multi_query_keys_are_replicated_over_tensor():
    specs = _specs(2, 2, 2, n_kv_heads=1)
    assert specs["params/blocks/attention/key"] == P(None, "fsdp", None, None)
    assert specs["params/blocks/attention/query"] == P(None, "fsdp", "tensor", None)


def test_what_has_no_box_is_replicated():
    mesh = _mesh(2, 2, 2)
    assert tree_shardings(mesh, {"step": jax.ShapeDtypeStruct((8,), jnp.int32)}) == {"step": NamedSharding(mesh, P())}


def test_constrain_pins_on_a_mesh_and_does_nothing_outside():
    x = jnp.ones((8, 5, 32))
    assert constrain(x, "batch", "length", "width") is x
    mesh = _mesh(2, 2, 2)
    with jax.set_mesh(mesh):
        pinned = jax.jit(lambda x: constrain(2 * x, "batch", "length", "width"))(x)
    assert pinned.sharding.is_equivalent_to(NamedSharding(mesh, P(("data", "fsdp"))), 3)
    np.testing.assert_array_equal(pinned, 2 * np.ones((8, 5, 32)))


def test_rows_of_a_batch_go_to_all_but_tensor_partners():
    mesh = _mesh(2, 2, 2)
    batch = jax.device_put(jnp.arange(16).reshape(8, 2), batch_sharding(mesh))
    rows = {shard.device: shard.data[:, 0].tolist() for shard in batch.addressable_shards}
    for group, partners in enumerate(mesh.devices.reshape(4, 2)):
        for device in partners:
            assert rows[device] == [4 * group, 4 * group + 2]
