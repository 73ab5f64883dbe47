"""The flash kernel for Hopper, whose warps take roles: one copies keys and values, two warpgroups attend by turns.

While one of them weighs its scores the other multiplies, and each weighs a step's scores while its own product of the
step before runs. As FlashAttention-3 does (Shah et al. 2024, arXiv 2407.08608), of which this is written anew, over
lists of blocks too. The plain truth is `kernels.attention.naive_attention`, and `kernels.block_sparse` for lists.
"""

from __future__ import annotations

from inference_pio.compat import tile_copies
from inference_pio.kernels.triton.flash_tiles import place_of, places_of, tile_of
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

copy_in, copy_out = tile_copies()
GROUPS = gl.constexpr(2)
"""Warpgroups that attend."""
LOG2_E = gl.constexpr(1.4426950408889634)
HIDDEN = gl.constexpr(-1.0e30)  # finite: a row that has seen no key yet must not become NaN
COPYING_REGISTERS = gl.constexpr(40)


@gluon.jit
def weigh(scores, total, peak, places, positions, keys, scale, MASKED: gl.constexpr, CAUSAL: gl.constexpr):
    """The weights of a tile of scores; the sums and peaks of its rows with it; by what to shrink what was before."""
    if MASKED:
        visible = (places < keys)[None, :]
        if CAUSAL:
            visible = visible & (places[None, :] <= positions[:, None])
        scores = gl.where(visible, scores, HIDDEN)
    higher = gl.maximum(peak, gl.max(scores, 1) * scale)
    weights = gl.exp2(scores * scale - higher[:, None])
    if MASKED:  # a fused product is not rounded: minus its rounded twin it is no zero where HIDDEN is the peak
        weights = gl.where(scores > 0.5 * HIDDEN, weights, 0.0)
    shrink = gl.exp2(peak - higher)
    return weights, total * shrink + gl.sum(weights, 1), higher, shrink


@gluon.jit
def attend(which: gl.constexpr, buffers, barriers, out_rows, lse, sizes, tiles, starts, counts, indices, scale,
           GROUP: gl.constexpr, ROWS: gl.constexpr, TILE: gl.constexpr, WIDTH: gl.constexpr, STAGES: gl.constexpr,
           PARTS: gl.constexpr, CAUSAL: gl.constexpr, HAS_STARTS: gl.constexpr, LISTED: gl.constexpr,
           HAS_LSE: gl.constexpr):  # fmt: skip
    """What a warpgroup does: its ROWS queries of each tile, over the keys and values that are copied for both."""
    query, keys_held, values_held, outs, tile_numbers = buffers
    query_full, query_free, keys_full, keys_free, values_full, values_free, turns, number_full, number_free = barriers
    heads, _, queries, keys, _ = sizes
    score_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE, 16])
    out_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDTH, 16])
    weight_layout: gl.constexpr = gl.DotOperandLayout(0, out_layout, 2)
    row_layout: gl.constexpr = gl.SliceLayout(1, score_layout)
    column_layout: gl.constexpr = gl.SliceLayout(0, score_layout)
    out_row_layout: gl.constexpr = gl.SliceLayout(1, out_layout)
    mine = query.index(which).reshape([ROWS, WIDTH])
    empty = gl.zeros([ROWS, TILE], gl.float32, layout=score_layout)
    my_turn = 1 - which  # of a barrier that nobody has arrived at the phase before counts as over: the first begins
    number, done, walked = gl.program_id(0), 0, 0
    while number < tiles:
        batch, head, first_row, begin, blocks, steps, masked = tile_of(
            number, sizes, starts, counts, GROUP, GROUPS * ROWS, TILE, PARTS, CAUSAL, HAS_STARTS, LISTED
        )
        rows = first_row + which * ROWS + gl.arange(0, ROWS, layout=row_layout)
        positions = keys - queries + rows
        total = gl.zeros([ROWS], gl.float32, layout=row_layout)
        peak = gl.full([ROWS], float("-inf"), gl.float32, layout=row_layout)
        summed = gl.zeros([ROWS, WIDTH], gl.float32, layout=out_layout)
        places = places_of(0, indices, begin, blocks, steps, keys, column_layout, TILE, PARTS, LISTED)

        # The first step has no product of values before it.
        stage = walked % STAGES
        mbarrier.wait(query_full.index(which), done & 1)
        mbarrier.wait(keys_full.index(stage), walked // STAGES & 1)
        mbarrier.wait(turns.index(which), (walked & 1) ^ my_turn)
        turned = keys_held.index(stage).reshape([TILE, WIDTH]).permute((1, 0))
        scores = warpgroup_mma(mine, turned, empty, use_acc=False, is_async=True)
        mbarrier.arrive(turns.index(1 - which))
        scores = warpgroup_mma_wait(0, deps=(scores,))
        mbarrier.arrive(keys_free.index(stage))
        weights, total, peak, shrink = weigh(scores, total, peak, places, positions, keys, scale, True, CAUSAL)
        weights = gl.convert_layout(weights.to(mine.dtype), weight_layout)

        for masking in gl.static_range(2):  # steps with a mask, then those without
            first, last = 1, masked
            if masking == 1:
                first, last = masked, steps
            for step in range(first, last):
                walk = walked + step
                stage, before = walk % STAGES, (walk - 1) % STAGES
                before_phase = (walk - 1) // STAGES & 1
                mbarrier.wait(keys_full.index(stage), walk // STAGES & 1)
                mbarrier.wait(turns.index(which), (walk & 1) ^ my_turn)
                turned = keys_held.index(stage).reshape([TILE, WIDTH]).permute((1, 0))
                scores = warpgroup_mma(mine, turned, empty, use_acc=False, is_async=True)
                mbarrier.wait(values_full.index(before), before_phase)
                held = values_held.index(before).reshape([TILE, WIDTH])
                summed = warpgroup_mma(weights, held, summed, is_async=True)
                mbarrier.arrive(turns.index(1 - which))
                scores = warpgroup_mma_wait(1, deps=(scores,))
                mbarrier.arrive(keys_free.index(stage))
                if masking == 0:
                    places = places_of(step, indices, begin, blocks, steps, keys, column_layout, TILE, PARTS, LISTED)
                weighed, total, peak, shrink = weigh(
                    scores, total, peak, places, positions, keys, scale, masking == 0, CAUSAL
                )
                # The machine code's compiler draws the wait below ahead of the weighing that should hide it, but not
                # over a branch: this barrier's phase is over, and asking for it costs nothing.
                mbarrier.wait(values_full.index(before), before_phase)
                summed, weighed, total, shrink = warpgroup_mma_wait(0, deps=(summed, weighed, total, shrink))
                mbarrier.arrive(values_free.index(before))
                weights = gl.convert_layout(weighed.to(mine.dtype), weight_layout)
                summed = summed * gl.convert_layout(shrink, out_row_layout)[:, None]

        mbarrier.arrive(query_free.index(which))
        walked += steps
        before = (walked - 1) % STAGES
        mbarrier.wait(values_full.index(before), (walked - 1) // STAGES & 1)
        summed = warpgroup_mma(weights, values_held.index(before).reshape([TILE, WIDTH]), summed, is_async=True)
        blind = peak < scale * (0.5 * HIDDEN)  # no key is visible: zero, not an average of hidden keys
        if HAS_LSE:
            natural = gl.where(blind, float("-inf"), (peak + gl.log2(total)) / LOG2_E)
            gl.store(lse + (batch * heads + head).to(gl.int64) * queries + rows, natural, mask=rows < queries)
        share = gl.convert_layout(1.0 / total, out_row_layout)[:, None]
        sees = gl.convert_layout(gl.where(blind, 0, 1), out_row_layout)[:, None] != 0
        summed = warpgroup_mma_wait(0, deps=(summed,))
        mbarrier.arrive(values_free.index(before))
        tma.store_wait(0)  # of the tile before
        outs.index(which).reshape([ROWS, WIDTH]).store(gl.where(sees, summed * share, 0.0).to(mine.dtype))
        fence_async_shared()
        copy_out(out_rows, [batch, head, first_row + which * ROWS, 0], outs.index(which))

        slot = done & 1
        mbarrier.wait(number_full.index(slot), done >> 1 & 1)
        number = gl.sum(tile_numbers.index(slot).load(gl.BlockedLayout([1], [32], [4], [0])), 0)
        mbarrier.arrive(number_free.index(slot))
        done += 1
    tma.store_wait(0)


@gluon.jit
def copy(buffers, barriers, query_rows, key_rows, value_rows, counter, sizes, tiles, starts, counts, indices,
         GROUP: gl.constexpr, ROWS: gl.constexpr, TILE: gl.constexpr, WIDTH: gl.constexpr, STAGES: gl.constexpr,
         PARTS: gl.constexpr, CAUSAL: gl.constexpr, HAS_STARTS: gl.constexpr, LISTED: gl.constexpr):  # fmt: skip
    """What the other warp does: it asks for the next tile and has its queries, keys and values copied, steps ahead."""
    query, keys_held, values_held, _, tile_numbers = buffers
    query_full, query_free, keys_full, keys_free, values_full, values_free, _, number_full, number_free = barriers
    _, _, _, keys, _ = sizes
    PART: gl.constexpr = TILE // PARTS
    number, done, walked = gl.program_id(0), 0, 0
    while number < tiles:
        batch, head, first_row, begin, blocks, steps, _ = tile_of(
            number, sizes, starts, counts, GROUP, GROUPS * ROWS, TILE, PARTS, CAUSAL, HAS_STARTS, LISTED
        )
        for which in gl.static_range(GROUPS):
            mbarrier.wait(query_free.index(which), (done & 1) ^ 1)
            mbarrier.expect(query_full.index(which), query_rows.block_type.nbytes)
            copy_in(query_rows, [batch, head, first_row + which * ROWS, 0], query_full.index(which), query.index(which))
        for step in range(steps):
            stage = (walked + step) % STAGES
            free = ((walked + step) // STAGES & 1) ^ 1
            place = place_of(step, indices, begin, blocks, steps, keys, 0, TILE, PARTS, LISTED)
            other = place
            if PARTS == 2:
                other = place_of(step, indices, begin, blocks, steps, keys, 1, TILE, PARTS, LISTED)
            for kind in gl.static_range(2):
                rows, held, full, emptied = key_rows, keys_held, keys_full, keys_free
                if kind == 1:
                    rows, held, full, emptied = value_rows, values_held, values_full, values_free
                mbarrier.wait(emptied.index(stage), free)
                mbarrier.expect(full.index(stage), PARTS * rows.block_type.nbytes)
                into, landed = held.index(stage), full.index(stage)
                copy_in(rows, [batch, head // GROUP, place, 0], landed, into.slice(0, PART, dim=2))
                if PARTS == 2:
                    copy_in(rows, [batch, head // GROUP, other, 0], landed, into.slice(PART, PART, dim=2))
        walked += steps
        number = gl.num_programs(0) + gl.atomic_add(counter, 1, sem="relaxed")
        slot = done & 1
        mbarrier.wait(number_free.index(slot), (done >> 1 & 1) ^ 1)
        tile_numbers.index(slot).store(gl.full([1], 0, gl.int32, gl.BlockedLayout([1], [32], [1], [0])) + number)
        mbarrier.arrive(number_full.index(slot))
        done += 1


@gluon.jit
def barriers_of(number: gl.constexpr, arrivals: gl.constexpr):
    made = gl.allocate_shared_memory(gl.int64, [number, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(number):
        mbarrier.init(made.index(i), count=arrivals)
    return made


@gluon.jit(
    do_not_specialize=["list_length", "slot"],
    do_not_specialize_on_alignment=["lse", "counters", "starts", "counts", "indices"],
)  # one compilation serves all lengths
def flash_roles_kernel(
    query_rows, key_rows, value_rows, out_rows, lse, counters, starts, counts, indices, list_length, slot,
    scale,
    GROUP: gl.constexpr, ROWS: gl.constexpr, TILE: gl.constexpr, WIDTH: gl.constexpr, STAGES: gl.constexpr,
    PARTS: gl.constexpr, CAUSAL: gl.constexpr, HAS_STARTS: gl.constexpr, LISTED: gl.constexpr, HAS_LSE: gl.constexpr,
    REGISTERS: gl.constexpr,
):  # fmt: skip
    dtype: gl.constexpr = query_rows.dtype
    layout: gl.constexpr = query_rows.layout
    buffers = (
        gl.allocate_shared_memory(dtype, [GROUPS, 1, 1, ROWS, WIDTH], layout),
        gl.allocate_shared_memory(dtype, [STAGES, 1, 1, TILE, WIDTH], layout),
        gl.allocate_shared_memory(dtype, [STAGES, 1, 1, TILE, WIDTH], layout),
        gl.allocate_shared_memory(dtype, [GROUPS, 1, 1, ROWS, WIDTH], layout),
        gl.allocate_shared_memory(gl.int32, [2, 1], gl.SwizzledSharedLayout(1, 1, 1, [0])),
    )
    barriers = (
        barriers_of(GROUPS, 1), barriers_of(GROUPS, 1), barriers_of(STAGES, 1), barriers_of(STAGES, GROUPS),
        barriers_of(STAGES, 1), barriers_of(STAGES, GROUPS), barriers_of(GROUPS, 1), barriers_of(2, 1),
        barriers_of(2, GROUPS),
    )  # fmt: skip
    heads, queries, key_heads, keys = query_rows.shape[1], query_rows.shape[2], key_rows.shape[1], key_rows.shape[2]
    sizes = (heads, key_heads, queries, keys, list_length)
    tiles = query_rows.shape[0] * heads * gl.cdiv(queries, GROUPS * ROWS)
    scale2 = scale * LOG2_E
    fence_async_shared()  # the copy engine arrives at barriers that were made by plain stores
    gl.warp_specialize(
        [
            (attend, (0, buffers, barriers, out_rows, lse, sizes, tiles, starts, counts, indices, scale2, GROUP, ROWS,
                      TILE, WIDTH, STAGES, PARTS, CAUSAL, HAS_STARTS, LISTED, HAS_LSE)),
            (attend, (1, buffers, barriers, out_rows, lse, sizes, tiles, starts, counts, indices, scale2, GROUP, ROWS,
                      TILE, WIDTH, STAGES, PARTS, CAUSAL, HAS_STARTS, LISTED, HAS_LSE)),
            (copy, (buffers, barriers, query_rows, key_rows, value_rows, counters + slot, sizes, tiles, starts, counts,
                    indices, GROUP, ROWS, TILE, WIDTH, STAGES, PARTS, CAUSAL, HAS_STARTS, LISTED)),
        ],
        [4, 1],
        [REGISTERS, COPYING_REGISTERS],
    )  # fmt: skip
