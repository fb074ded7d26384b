"""Traffic between devices, against programs whose traffic is known.

And the peculiarities of each compiler, as it writes them.
"""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from sparsecod_jax import config
from sparsecod_jax.parallel.sharding import make_mesh
from sparsecod_jax.plan.hlo import Traffic, collectives

MESH = make_mesh(config.Mesh(1, 8, 1, 1))
KIB = 1024  # of a device's part, [256] float32


def _compiled(function, size=8 * 256):
    """Collectives of `function`, mapped over eight devices."""
    mapped = jax.shard_map(
        function, mesh=MESH, in_specs=P("fsdp"), out_specs=P("fsdp"), check_vma=False
    )
    compiled = jax.jit(mapped).lower(jnp.zeros(size, jnp.float32)).compile()
    return collectives(compiled.as_text() or "")


def _all_reduce(x):
    return jax.lax.psum(x, "fsdp")


def _all_gather(x):
    return jax.lax.all_gather(x, "fsdp", tiled=True)[: x.size] + x


def _all_to_all(x):
    return jax.lax.all_to_all(x.reshape(8, -1), "fsdp", 0, 0).reshape(-1)


def _permute(x):
    ring = [(source, (source + 1) % 8) for source in range(8)]
    return jax.lax.ppermute(x, "fsdp", ring)


def _reduce_scatter(x):
    return jnp.tile(jax.lax.psum_scatter(x, "fsdp", tiled=True), 8)


@pytest.mark.parametrize(
    ("function", "kind", "size"),
    [
        (_all_reduce, "all-reduce", KIB),
        (_all_gather, "all-gather", 8 * KIB),  # what is received
        (_all_to_all, "all-to-all", KIB),
        (_permute, "collective-permute", KIB),
        (_reduce_scatter, "reduce-scatter", KIB),  # what is sent
    ],
)
def test_a_collective_counts_as_often_as_its_loop_runs(function, kind, size):
    def loop(x, length):
        return jax.lax.scan(lambda x, _: (function(x), None), x, length=length)[0]

    def nested(x):
        return jax.lax.scan(lambda x, _: (loop(x, 5), None), x, length=3)[0]

    assert _compiled(function) == {kind: Traffic(1, size)}
    assert _compiled(lambda x: loop(x, 7)) == {kind: Traffic(7, 7 * size)}
    total = Traffic(18, 18 * size)
    assert _compiled(lambda x: loop(function(nested(x)), 2)) == {kind: total}


def test_kinds_are_told_apart_and_narrow_numbers_weigh_less():
    def all_of_them(x):
        gathered = jax.lax.all_gather(x.astype(jnp.int8), "fsdp", tiled=True)
        permuted = _permute(x) + _permute(2 * x)
        total = jax.lax.psum(x.sum(), "fsdp")
        return permuted + gathered.sum().astype(x.dtype) + total

    assert _compiled(all_of_them) == {
        "collective-permute": Traffic(2, 2 * KIB),
        "all-gather": Traffic(1, 2 * KIB),
        "all-reduce": Traffic(1, 4),
    }


def test_one_device_sends_nothing():
    compiled = jax.jit(jnp.sin).lower(jnp.zeros(3)).compile()
    assert collectives(compiled.as_text() or "") == {}


def test_a_long_list_of_operands_is_added_up():
    """From the sixth on the compilers number them in comments."""
    text = """
ENTRY %main (a: f32[16], b: f32[16], c: f32[16], d: f32[16], e: f32[16], f: f32[16], \
g: bf16[16]) -> f32[2] {
  %a = f32[16]{0} parameter(0)
  %b = f32[16]{0} parameter(1)
  %c = f32[16]{0} parameter(2)
  %d = f32[16]{0} parameter(3)
  %e = f32[16]{0} parameter(4)
  %f = f32[16]{0} parameter(5)
  %g = bf16[16]{0} parameter(6)
  %rs = ((f32[16]{0}, f32[16]{0}, f32[16]{0}, f32[16]{0}, f32[16]{0}, \
/*index=5*/f32[16]{0}, bf16[16]{0}), (f32[2]{0}, f32[2]{0}, f32[2]{0}, f32[2]{0}, f32[2]{0}, \
/*index=5*/f32[2]{0}, bf16[2]{0})) reduce-scatter-start(%a, %b, %c, %d, %e, /*index=5*/%f, %g)
  %done = (f32[2]{0}, f32[2]{0}, f32[2]{0}, f32[2]{0}, f32[2]{0}, /*index=5*/f32[2]{0}, \
bf16[2]{0}) reduce-scatter-done(%rs)
  ROOT %get = f32[2]{0} get-tuple-element(%done), index=0
}
"""
    assert collectives(text) == {"reduce-scatter": Traffic(1, 6 * 64 + 32)}


def test_what_is_started_and_done_counts_once():
    """As compiled for GPUs and for TPUs: the results of a start repeat its operands, or do not."""
    text = """
ENTRY %main (a: f32[16], b: bf16[1,2]) -> f32[128] {
  %a = f32[16]{0:T(128)S(1)} parameter(0)
  %b = bf16[1,2]{1,0:T(8,128)(2,1)} parameter(1)
  %ag = (f32[16]{0}, f32[128]{0}) all-gather-start(%a), channel_id=1, dimensions={0}
  %gathered = f32[128]{0} all-gather-done(%ag)
  %ar = ((f32[16]{0}), f32[16]{0}) all-reduce-start(%a), channel_id=2, to_apply=%add
  %reduced = f32[16]{0} all-reduce-done(%ar)
  %ar.2 = bf16[1,2]{1,0:T(8,128)(2,1)} all-reduce-start(%b), channel_id=3, to_apply=%add
  %reduced.2 = bf16[1,2]{1,0:T(8,128)(2,1)} all-reduce-done(%ar.2)
  ROOT %copy = f32[128]{0} copy(%gathered)
}
"""
    assert collectives(text) == {
        "all-gather": Traffic(1, 512),
        "all-reduce": Traffic(2, 64 + 4),
    }


def test_a_collective_that_a_tpu_spreads_over_fusions_counts_where_it_starts():
    text = """
%start (p0: bf16[1,128]) -> (bf16[1,128], bf16[1,2048]) {
  %p0 = bf16[1,128]{1,0:T(8,128)(2,1)} parameter(0)
  %ag.1 = bf16[1,2048]{1,0:T(8,128)(2,1)} all-gather(%p0), channel_id=215, dimensions={1}
  ROOT %custom.1 = (bf16[1,128]{1,0}, bf16[1,2048]{1,0}, u32[]{:S(2)}) \
custom-call(%ag.1), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.8 (p1: bf16[1,128], p2: bf16[1,2048]) -> bf16[1,2048] {
  %p1 = bf16[1,128]{1,0:T(8,128)(2,1)} parameter(0)
  %p2 = bf16[1,2048]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %ag.2 = bf16[1,2048]{1,0:T(8,128)(2,1)S(1)} all-gather(%p1), channel_id=215, dimensions={1}
}

%done (p3: bf16[1,128], p4: bf16[1,2048]) -> bf16[1,2048] {
  %p3 = bf16[1,128]{1,0:T(8,128)(2,1)} parameter(0)
  %p4 = bf16[1,2048]{1,0:T(8,128)(2,1)} parameter(1)
  %ag.3 = bf16[1,2048]{1,0:T(8,128)(2,1)} all-gather(%p3), channel_id=215, dimensions={1}
  ROOT %custom.2 = bf16[1,2048]{1,0} custom-call(%p3, %p4, %ag.3), \
custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (x: bf16[1,128]) -> bf16[1,2048] {
  %x = bf16[1,128]{1,0:T(8,128)(2,1)} parameter(0)
  %f.1 = (bf16[1,128]{1,0}, bf16[1,2048]{1,0}, u32[]{:S(2)}) fusion(%x), kind=kCustom, calls=%start
  %part = bf16[1,2048]{1,0} get-tuple-element(%f.1), index=1
  %f.2 = bf16[1,2048]{1,0} fusion(%x, %part), kind=kCustom, calls=%async_collective_fusion.8
  ROOT %f.3 = bf16[1,2048]{1,0} fusion(%x, %f.2), kind=kCustom, calls=%done
}
"""
    assert collectives(text) == {"all-gather": Traffic(1, 4096)}


def test_a_tpu_fuses_a_reduce_scatter_from_an_all_reduce_and_a_slice():
    text = """
%all-reduce-scatter.7 (input: bf16[2048,16]) -> bf16[512,16] {
  %input = bf16[2048,16]{1,0:T(8,128)(2,1)} parameter(0)
  %all = bf16[2048,16]{1,0:T(8,128)(2,1)} all-reduce(%input), channel_id=36, \
replica_groups={{0,1,2,3}}, to_apply=%add.clone
  ROOT %slice = bf16[512,16]{1,0:T(8,128)(2,1)} dynamic-slice(%all, %from, %zero), \
dynamic_slice_sizes={512,16}
}

ENTRY %main (x: bf16[2048,16]) -> bf16[512,16] {
  %x = bf16[2048,16]{1,0:T(8,128)(2,1)} parameter(0)
  %rest = bf16[2048,16]{1,0:T(8,128)(2,1)} all-reduce(%x), channel_id=37, \
replica_groups={{0,1,2,3}}, to_apply=%add.clone
  ROOT %fusion = bf16[512,16]{1,0:T(8,128)(2,1)} fusion(%rest), kind=kCustom, \
calls=%all-reduce-scatter.7
}
"""
    assert collectives(text) == {
        "reduce-scatter": Traffic(1, 65536),
        "all-reduce": Traffic(1, 65536),
    }


def test_between_slices_a_tpu_sends_through_its_host():
    text = """
ENTRY %main (x: bf16[4096,8]) -> bf16[4096,8] {
  %x = bf16[4096,8]{1,0:T(8,128)(2,1)} parameter(0)
  %after = token[] after-all()
  %send = (bf16[4096,8]{1,0:T(8,128)(2,1)}, u32[], token[]) send(%x, %after), \
channel_id=12, is_host_transfer=true
  %recv = (bf16[4096,8]{1,0:T(8,128)(2,1)}, u32[], token[]) recv(%after), channel_id=13, \
is_host_transfer=true
  %sent = token[] send-done(%send), channel_id=12, is_host_transfer=true
  %received = (bf16[4096,8]{1,0:T(8,128)(2,1)}, token[]) recv-done(%recv), \
channel_id=13, is_host_transfer=true
  ROOT %result = bf16[4096,8]{1,0:T(8,128)(2,1)} get-tuple-element(%received), index=0
}
"""
    assert collectives(text) == {"send": Traffic(1, 65536)}


LOOP = """
%body (p: (f32[16], s32[])) -> (f32[16], s32[]) {
  %p = (f32[16]{0}, s32[]) parameter(0)
  %part = f32[16]{0} get-tuple-element(%p), index=0
  %sum = f32[16]{0} all-reduce(%part), channel_id=1, to_apply=%add
  %count = s32[] get-tuple-element(%p), index=1
  ROOT %next = (f32[16]{0}, s32[]) tuple(%sum, %count)
}

%condition (q: (f32[16], s32[])) -> pred[] {
  %limit = s32[]{:T(128)} constant(16), metadata={op_name="while"}
  %q = (f32[16]{0}, s32[]{:T(128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%q), index=1
  ROOT %less = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

ENTRY %main (x: f32[16]) -> (f32[16], s32[]) {
  %x = f32[16]{0} parameter(0)
  %start = s32[]{:T(128)} constant(START)
  %copied = s32[]{:T(128)} copy(%start)
  %tuple = (f32[16]{0}, s32[]{:T(128)}) tuple(%x, %copied)
  ROOT %loop = (f32[16]{0}, s32[]{:T(128)}) while(%tuple), condition=%condition, body=%bodyKNOWN
}
"""


KNOWN_TRIPS = (
    ', backend_config={"known_trip_count":{"n":"4"},'
    '"known_init_step":{"init":"0","step":"1"}}'
)


@pytest.mark.parametrize(
    ("start", "known", "trips"),
    [
        ("0", "", 16),
        ("1", "", 15),  # the first iteration was peeled off
        ("0", KNOWN_TRIPS, 4),
    ],
)
def test_a_loop_runs_as_often_as_its_condition_says(start, known, trips):
    text = LOOP.replace("START", start).replace("KNOWN", known)
    assert collectives(text) == {"all-reduce": Traffic(trips, 64 * trips)}


def test_a_branch_counts_as_if_it_were_taken():
    """The larger of two branches can't be told from the text, so both count."""

    def function(x):
        return jax.lax.cond(x[0] > 0, _permute, lambda x: _permute(_permute(x)), x)

    assert _compiled(function) == {"collective-permute": Traffic(3, 3 * KIB)}
