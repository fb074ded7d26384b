"""How does a Hopper keep multiplying? One warpgroup loads a few steps ahead of three that multiply, each its third of a tile's rows.

The kernels that JAX ships do all this with one warpgroup, in smaller tiles; these are 6 to 18 % faster (docs/benchmarks).

R rows sorted by group, E groups, D and F widths, P products of a tile of rows with a group's matrix.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

MULTIPLIERS = 3  # warpgroups
MINE = 64  # rows of each: those of a tensor core's product
TILE = MULTIPLIERS * MINE  # rows, and columns
STEP = 64  # of the width that is summed over: 128 bytes, the most that shared memory swizzles
IN_FLIGHT = 4  # steps
ACROSS = 4  # columns of tiles that are taken together, so that caches serve rows and matrices


def rows_times_matrices(
    x_RD: jax.Array,
    w_EDF: jax.Array,
    sizes_E: jax.Array,
    *,
    transpose: bool,
    cores: int,
) -> jax.Array:
    """Each row times its group's matrix, [R, F]; rows beyond the groups stay uninitialised.

    Args:
      transpose: the matrices are [E, F, D].
      cores: of the device.
    """
    (R, D), F = x_RD.shape, w_EDF.shape[1 if transpose else 2]
    products_4P, count_1 = _products(sizes_E, R)
    across = pl.cdiv(F, TILE)
    matrix = (
        ((TILE, STEP), lambda step: (0, step))
        if transpose
        else ((STEP, TILE), lambda step: (step, 0))
    )
    pipeline = partial(
        _pipeline, ((TILE, STEP), lambda step: (0, step)), matrix, D // STEP
    )

    def tile(index, me, loaded, stored, products, count, x, w, y):
        number, column = plgpu.planar_snake(index, (count[0], across), 1, ACROSS)
        group, block, first, end = (products[field, number] for field in range(4))

        def multiply(_, x_smem, w_smem, sums):
            plgpu.wgmma(
                sums,
                x_smem.at[_mine(me)],
                plgpu.transpose_ref(w_smem, (1, 0)) if transpose else w_smem,
            )

        def store(sums):
            mine_first, mine_end = (
                jnp.clip(bound - me * MINE, 0, MINE) for bound in (first, end)
            )
            top = pl.multiple_of(block * TILE + me * MINE, MINE)
            _store(
                sums,
                stored.at[me],
                y.at[:, pl.ds(column * TILE, TILE)],
                partial(_copy_some, top, mine_first, mine_end),
            )

        rows, columns = (
            x.at[pl.ds(pl.multiple_of(block * TILE, TILE), TILE)],
            pl.ds(column * TILE, TILE),
        )
        some = w.at[group].at[columns] if transpose else w.at[group].at[:, columns]
        pipeline(multiply, store)(rows, some, allocations=loaded)

    def buffers(products, count, x, w, y):
        return pipeline(None, None).get_allocations(x, w.at[0])

    out = jax.ShapeDtypeStruct((R, F), x_RD.dtype)
    return _on_all(
        cores,
        lambda products, count, *_: count[0] * across,
        tile,
        buffers,
        out,
        products_4P,
        count_1,
        x_RD,
        w_EDF,
    )


def rows_times_rows(
    x_RD: jax.Array, y_RF: jax.Array, sizes_E: jax.Array, *, cores: int
) -> jax.Array:
    """The sum of the outer products of a group's rows, [E, D, F]: zeros for an empty group. Rows beyond the groups have to be finite."""
    E, D, F = len(sizes_E), x_RD.shape[1], y_RF.shape[1]
    ends_E = jnp.cumsum(sizes_E)
    spans_2E = jnp.stack([ends_E - sizes_E, ends_E]).astype(jnp.int32)
    down, across = pl.cdiv(D, TILE), pl.cdiv(F, TILE)

    def pipeline(first_block, steps, multiply, store):
        block = ((STEP, TILE), lambda step: (first_block + step, 0))
        return _pipeline(block, block, steps, multiply, store)

    def tile(index, me, loaded, stored, spans, x, y, w):
        group, place = index // (down * across), lax.rem(index, down * across)
        row, column = plgpu.planar_snake(place, (down, across), 1, ACROSS)
        start, end = spans[0, group], spans[1, group]
        first_block = start // STEP
        steps = jnp.where(end > start, pl.cdiv(end, STEP) - first_block, 0)

        def multiply(step, x_smem, y_smem, sums):
            mine = x_smem.at[:, _mine(me)]

            @pl.when((step[0] == 0) | (step[0] == steps - 1))
            def _():
                """The first and last rows may be of other groups."""
                number = plgpu.layout_cast(
                    lax.broadcasted_iota(jnp.int32, (STEP, MINE), 0), plgpu.Layout.WGMMA
                )
                number += (first_block + step[0]) * STEP
                mine[...] = jnp.where(
                    (number >= start) & (number < end),
                    mine[...],
                    jnp.zeros_like(mine[...]),
                )
                plgpu.commit_smem()

            plgpu.wgmma(sums, plgpu.transpose_ref(mine, (1, 0)), y_smem)

        def store(sums):
            to = w.at[group].at[
                pl.ds(row * TILE + me * MINE, MINE), pl.ds(column * TILE, TILE)
            ]
            _store(
                sums,
                stored.at[me],
                to,
                partial(plgpu.copy_smem_to_gmem, commit_group=False),
            )

        x, y = (z.at[:, pl.ds(at * TILE, TILE)] for z, at in ((x, row), (y, column)))
        pipeline(first_block, steps, multiply, store)(x, y, allocations=loaded)

    def buffers(spans, x, y, w):
        return pipeline(0, IN_FLIGHT, None, None).get_allocations(x, y)

    out = jax.ShapeDtypeStruct((E, D, F), x_RD.dtype)
    return _on_all(
        cores, lambda *_: E * down * across, tile, buffers, out, spans_2E, x_RD, y_RF
    )


def _products(sizes_E: jax.Array, rows: int) -> tuple[jax.Array, jax.Array]:
    """Of each product the group, the tile, and its first row and the row after its last one within the tile; and how many there are.

    A tile in which groups meet has a product for each of them. There are entries for as many as there can be: those beyond the number
    mean nothing.
    """
    ends_E = jnp.cumsum(sizes_E)
    starts_E = ends_E - sizes_E
    tiles_E = jnp.where(sizes_E > 0, (ends_E - 1) // TILE - starts_E // TILE + 1, 0)
    ends_of_tiles_E = jnp.cumsum(tiles_E)
    number_P = jnp.arange(pl.cdiv(rows, TILE) + len(sizes_E) - 1)
    group_P = (number_P[:, None] >= ends_of_tiles_E[None, :]).sum(axis=1)
    tile_P = (starts_E // TILE - ends_of_tiles_E + tiles_E)[group_P] + number_P
    first_P, end_P = (
        jnp.clip(bound_E[group_P] - tile_P * TILE, 0, TILE)
        for bound_E in (starts_E, ends_E)
    )
    return jnp.stack([group_P, tile_P, first_P, end_P]).astype(
        jnp.int32
    ), ends_of_tiles_E[-1:].astype(jnp.int32)


def _on_all(cores, count_tiles, tile, buffers, out, *operands):
    """Every core takes its share of the tiles, which are counted from the operands; the buffers serve them all."""

    def body(*refs):
        def run(loaded, stored):
            @plgpu.nd_loop((count_tiles(*refs),), collective_axes="core")
            def _(loop):
                tile(loop.index[0], lax.axis_index("warpgroup"), loaded, stored, *refs)

            plgpu.wait_smem_to_gmem(0)

        transforms = plgpu.TilingTransform((1, STEP)), plgpu.SwizzleTransform(2 * STEP)
        stored = plgpu.SMEM((MULTIPLIERS, MINE, STEP), out.dtype, transforms=transforms)
        pl.run_scoped(
            run, loaded=buffers(*refs), stored=stored, collective_axes="warpgroup"
        )

    kernel = plgpu.kernel(
        body,
        out_type=out,
        grid=(cores,),
        grid_names=("core",),
        num_threads=MULTIPLIERS + 1,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(
            lowering_semantics=plgpu.LoweringSemantics.Warpgroup
        ),
    )
    return kernel(*operands)


def _pipeline(x_block, w_block, steps, multiply, store):
    """Loads the steps of a tile, IN_FLIGHT at a time, and has them multiplied, then stored."""
    swizzled = plgpu.TilingTransform((8, STEP)), plgpu.SwizzleTransform(2 * STEP)

    def multiply_one(*step_and_sums):
        multiply(*step_and_sums)
        plgpu.wgmma_wait(0)
        return step_and_sums[-1]

    def multiply_and_store(multiply_all):
        @partial(pl.run_scoped, sums=plgpu.ACC((MINE, TILE), jnp.float32))  # pyright: ignore[reportPrivateImportUsage]
        def _(sums):
            multiply_all(sums)
            store(sums[...])

    return plgpu.emit_pipeline_warp_specialized(
        multiply_one,
        grid=(steps,),
        memory_registers=40,
        in_specs=[
            plgpu.BlockSpec(*block, transforms=swizzled) for block in (x_block, w_block)
        ],
        wg_axis="warpgroup",
        num_compute_wgs=MULTIPLIERS,
        max_concurrent_steps=IN_FLIGHT,
        compute_context=multiply_and_store,
    )


def _mine(me):
    return pl.ds(pl.multiple_of(me * MINE, MINE), MINE)


def _store(sums, buffer, to, copy):
    """Takes 128 bytes of each row at a time, so that a copy may begin at any row."""
    for column in range(0, TILE, STEP):
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        buffer[...] = sums[:, column : column + STEP].astype(buffer.dtype)
        plgpu.commit_smem()
        copy(buffer, to.at[:, pl.ds(column, STEP)])
        plgpu.commit_smem_to_gmem_group()


def _copy_some(top, first, end, buffer, to):
    """Puts rows `first` to `end` of the buffer below `top`. A copy has a fixed number of rows: some are copied by powers of two."""
    row = first
    for power in reversed(range(MINE.bit_length())):
        size = 2**power
        source, target = buffer.at[pl.ds(row, size)], to.at[pl.ds(top + row, size)]
        pl.when((end - first) & size != 0)(
            partial(plgpu.copy_smem_to_gmem, source, target, commit_group=False)
        )
        row += (end - first) & size
