"""How does a Hopper GPU keep multiplying?

Grouped products: in a block of four warpgroups one loads, a few steps ahead of three that
multiply, each its third of a tile's rows. The kernels that JAX ships do all this with one
warpgroup, in smaller tiles; these are 6 to 18 % faster (docs/benchmarks).

R rows sorted by group, E groups, D and F widths, P products of a tile of rows with a group's
matrix.
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
ACROSS = 4  # columns of tiles taken together, so that caches serve rows and matrices


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
      x_RD: rows, sorted by group.
      w_EDF: the groups' matrices.
      sizes_E: rows of each group.
      transpose: the matrices are [E, F, D].
      cores: of the device.
    """
    (R, D), F = x_RD.shape, w_EDF.shape[1 if transpose else 2]
    products_4P, count_1 = _products(sizes_E, R)
    across = pl.cdiv(F, TILE)
    # What a step loads: STEP columns of the tile's rows, and as much of the matrix.
    x_block = ((TILE, STEP), lambda step: (0, step))
    w_block = ((STEP, TILE), lambda step: (step, 0))
    if transpose:
        w_block = x_block
    pipeline = partial(_pipeline, x_block, w_block, D // STEP)

    def tile(index, me, loaded, stored, products, count, x, w, y):
        # Neighbours in time are neighbours in the matrix of tiles: what one has read is in
        # the cache for the next.
        number, column = plgpu.planar_snake(index, (count[0], across), 1, ACROSS)
        group, block, first, end = (products[field, number] for field in range(4))

        def store(sums):
            # Of the tile only the group's own rows, of which `me` has those in its third.
            mine_first, mine_end = (
                jnp.clip(bound - me * MINE, 0, MINE) for bound in (first, end)
            )
            top = pl.multiple_of(block * TILE + me * MINE, MINE)
            to = y.at[:, pl.ds(column * TILE, TILE)]
            copy = partial(_copy_some, top, mine_first, mine_end)
            _store(sums, stored.at[me], to, copy)

        rows = x.at[pl.ds(pl.multiple_of(block * TILE, TILE), TILE)]
        columns = pl.ds(column * TILE, TILE)
        matrix = w.at[group].at[columns if transpose else (slice(None), columns)]
        multiply = partial(_multiply, me, transpose)
        pipeline(multiply, store)(rows, matrix, allocations=loaded)

    def buffers(products, count, x, w, y):
        return pipeline(None, None).get_allocations(x, w.at[0])

    def tiles(products, count, *_):
        return count[0] * across

    out = jax.ShapeDtypeStruct((R, F), x_RD.dtype)
    return _on_all(cores, tiles, tile, buffers, out, products_4P, count_1, x_RD, w_EDF)


def _multiply(me, transpose: bool, _, x_smem, w_smem, sums):
    """One step of a warpgroup: its rows times the matrix, added to the sums."""
    rows = x_smem.at[_mine(me)]
    matrix = plgpu.transpose_ref(w_smem, (1, 0)) if transpose else w_smem
    plgpu.wgmma(sums, rows, matrix)


def rows_times_rows(
    x_RD: jax.Array, y_RF: jax.Array, sizes_E: jax.Array, *, cores: int
) -> jax.Array:
    """The sum of the outer products of a group's rows, [E, D, F].

    Zeros for an empty group. Rows beyond the groups have to be finite.

    Args:
      x_RD: rows, sorted by group.
      y_RF: rows, in the same order.
      sizes_E: rows of each group.
      cores: of the device.
    """
    E, D, F = len(sizes_E), x_RD.shape[1], y_RF.shape[1]
    ends_E = jnp.cumsum(sizes_E)
    spans_2E = jnp.stack([ends_E - sizes_E, ends_E]).astype(jnp.int32)
    down, across = pl.cdiv(D, TILE), pl.cdiv(F, TILE)

    def pipeline(first_block, steps, multiply, store):
        # Here the sum is over rows: a step loads STEP of them, and a tile's columns.
        block = ((STEP, TILE), lambda step: (first_block + step, 0))
        return _pipeline(block, block, steps, multiply, store)

    def tile(index, me, loaded, stored, spans, x, y, w):
        group, number = index // (down * across), lax.rem(index, down * across)
        row, column = plgpu.planar_snake(number, (down, across), 1, ACROSS)
        start, end = spans[0, group], spans[1, group]
        # Steps begin at multiples of STEP, so the outer ones may reach into other groups.
        first_block = start // STEP
        steps = jnp.where(end > start, pl.cdiv(end, STEP) - first_block, 0)

        def multiply(step, x_smem, y_smem, sums):
            mine = x_smem.at[:, _mine(me)]

            @pl.when((step[0] == 0) | (step[0] == steps - 1))
            def _():
                _zero_others(mine, first_block, step[0], start, end)

            plgpu.wgmma(sums, plgpu.transpose_ref(mine, (1, 0)), y_smem)

        def store(sums):
            to = w.at[group].at[
                pl.ds(row * TILE + me * MINE, MINE), pl.ds(column * TILE, TILE)
            ]
            copy = partial(plgpu.copy_smem_to_gmem, commit_group=False)
            _store(sums, stored.at[me], to, copy)

        x, y = (z.at[:, pl.ds(at * TILE, TILE)] for z, at in ((x, row), (y, column)))
        pipeline(first_block, steps, multiply, store)(x, y, allocations=loaded)

    def buffers(spans, x, y, w):
        return pipeline(0, IN_FLIGHT, None, None).get_allocations(x, y)

    def tiles(*_):
        return E * down * across

    out = jax.ShapeDtypeStruct((E, D, F), x_RD.dtype)
    return _on_all(cores, tiles, tile, buffers, out, spans_2E, x_RD, y_RF)


def _zero_others(mine, first_block, step, start, end) -> None:
    """Sets the rows of other groups to zero, so that they add nothing to the sums.

    Zeros in one factor are enough, as the other is finite.
    """
    number = plgpu.layout_cast(
        lax.broadcasted_iota(jnp.int32, (STEP, MINE), 0), plgpu.Layout.WGMMA
    )
    number += (first_block + step) * STEP
    is_own = (number >= start) & (number < end)
    mine[...] = jnp.where(is_own, mine[...], jnp.zeros_like(mine[...]))
    # Tensor cores read shared memory past the threads' own order of writes.
    plgpu.commit_smem()


def _products(sizes_E: jax.Array, rows: int) -> tuple[jax.Array, jax.Array]:
    """Which products of a tile of rows with a group's matrix there are.

    A tile in which groups meet has a product for each of them. There are entries for as many
    as there can be: those beyond the number mean nothing.

    Returns:
      Of each product the group, the tile, its first row and the row after its last one
      within the tile, [4, P]; and how many products there are, [1].
    """
    ends_E = jnp.cumsum(sizes_E)
    starts_E = ends_E - sizes_E
    # A group's tiles: from that of its first row to that of its last one.
    tiles_E = jnp.where(sizes_E > 0, (ends_E - 1) // TILE - starts_E // TILE + 1, 0)
    ends_of_tiles_E = jnp.cumsum(tiles_E)
    # Every tile has one product, and every boundary between groups may add one.
    number_P = jnp.arange(pl.cdiv(rows, TILE) + len(sizes_E) - 1)
    # A product's group is the first whose tiles end after it.
    group_P = (number_P[:, None] >= ends_of_tiles_E[None, :]).sum(axis=1)
    tile_P = (starts_E // TILE - ends_of_tiles_E + tiles_E)[group_P] + number_P
    first_P, end_P = (
        jnp.clip(bound_E[group_P] - tile_P * TILE, 0, TILE)
        for bound_E in (starts_E, ends_E)
    )
    products_4P = jnp.stack([group_P, tile_P, first_P, end_P]).astype(jnp.int32)
    return products_4P, ends_of_tiles_E[-1:].astype(jnp.int32)


def _on_all(cores, count_tiles, tile, buffers, out, *operands):
    """Has every core take its share of the tiles.

    Args:
      cores: of the device.
      count_tiles: how many tiles there are, from the operands.
      tile: computes one, in every warpgroup.
      buffers: shared memory of the pipeline, from the operands and the result; it serves
        all tiles of a core.
      out: shape and dtype of the result.
      operands: arrays.
    """

    def body(*refs):
        def run(loaded, stored):
            @plgpu.nd_loop((count_tiles(*refs),), collective_axes="core")
            def _(loop):
                tile(loop.index[0], lax.axis_index("warpgroup"), loaded, stored, *refs)

            # A core may not end before its last copies have left shared memory.
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
        # The loader may overwrite this step's memory once the product no longer reads it.
        plgpu.wgmma_wait(0)
        return step_and_sums[-1]

    def multiply_and_store(multiply_all):
        @partial(pl.run_scoped, sums=plgpu.ACC((MINE, TILE), jnp.float32))  # pyright: ignore[reportPrivateImportUsage]
        def _(sums):
            multiply_all(sums)
            store(sums[...])

    in_specs = [
        plgpu.BlockSpec(*block, transforms=swizzled) for block in (x_block, w_block)
    ]
    return plgpu.emit_pipeline_warp_specialized(
        multiply_one,
        grid=(steps,),
        memory_registers=40,  # few for the loader leave more to those that multiply
        in_specs=in_specs,
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
        # The last copy reads the buffer on its own time.
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        buffer[...] = sums[:, column : column + STEP].astype(buffer.dtype)
        plgpu.commit_smem()
        copy(buffer, to.at[:, pl.ds(column, STEP)])
        plgpu.commit_smem_to_gmem_group()


def _copy_some(top, first, end, buffer, to):
    """Puts rows `first` to `end` of the buffer below `top`.

    A copy has a fixed number of rows: some are copied by powers of two.
    """
    row = first
    for power in reversed(range(MINE.bit_length())):
        size = 2**power
        source, target = buffer.at[pl.ds(row, size)], to.at[pl.ds(top + row, size)]
        copy = partial(plgpu.copy_smem_to_gmem, source, target, commit_group=False)
        pl.when((end - first) & size != 0)(copy)
        row += (end - first) & size
