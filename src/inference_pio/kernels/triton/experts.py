"""Products with the chosen experts of few tokens, read where they lie; the plain truth is in `kernels.experts`.

Each token reads each of its experts by itself; programs that may read the same rows stand next to one another, so that
tokens which share an expert find it in the second cache.
Sums are float32 in a fixed order. The first product is rounded as the library rounds it; the second once, at the end.
"""

from __future__ import annotations

import torch

import triton
import triton.language as tl
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.experts import Parts, check_scales, two
from inference_pio.kernels.row_codes import group_of, inputs_of
from inference_pio.kernels.triton.experts_launch import RowLaunch, choose_down_launch, choose_gate_up_launch
from inference_pio.kernels.triton.gemv_launch import weight_bytes
from inference_pio.kernels.triton.group_codes import rows_by_groups
from inference_pio.kernels.triton.launch import on_device
from inference_pio.kernels.triton.overlap import overlapping, wait_for_others
from inference_pio.kernels.triton.row_codes import as_read, number, row_scale
from inference_pio.kernels.triton.row_support import supports_rows
from inference_pio.kernels.triton.support import require

WORDS = tl.constexpr(4)
"""Words of eight codes that a thread reads at a time, of weights in groups."""


@triton.jit
def gated_rows(x, gate, up, gate_scales, up_scales, rows, here, grid_step, WIDTH: tl.constexpr, ROWS: tl.constexpr,
               COLUMNS: tl.constexpr, CODED: tl.constexpr, GROUP: tl.constexpr, INTERPRETED: tl.constexpr):  # fmt: skip
    """silu(gate) * up of some rows of one expert, rounded to the dtype of `x` where the library rounds."""
    if GROUP:
        both = tl.arange(0, 2)[:, None]  # the gate, then up
        offsets = rows.to(tl.int64)[None, :] * (WIDTH // 8)
        places = tl.where(both == 0, gate + offsets, up + offsets)
        grids = tl.where(both == 0, gate_scales + rows[None, :], up_scales + rows[None, :])
        sums = rows_by_groups(
            x + tl.arange(0, 1), tl.reshape(places, [1, 2 * ROWS]), tl.reshape(grids, [1, 2 * ROWS]),
            tl.reshape(tl.broadcast_to(here[None, :], [2, ROWS]), [1, 2 * ROWS]), grid_step, 1, 2 * ROWS, WIDTH,
            COLUMNS, WORDS, GROUP, INTERPRETED,
        )  # fmt: skip
        opened, found = tl.split(tl.trans(tl.reshape(sums, [2, ROWS])))
    else:
        columns = tl.arange(0, COLUMNS)
        gates = tl.zeros([ROWS, COLUMNS], tl.float32)
        ups = tl.zeros([ROWS, COLUMNS], tl.float32)
        for step in tl.static_range(0, WIDTH, COLUMNS):
            place = step + columns
            mine = tl.load(x + place, mask=place < WIDTH, other=0.0).to(tl.float32)[None, :]
            offsets, read = rows[:, None] * WIDTH + place[None, :], here[:, None] & (place < WIDTH)[None, :]
            gates += mine * number(tl.load(gate + offsets, mask=read, other=0.0))
            ups += mine * number(tl.load(up + offsets, mask=read, other=0.0))
        opened, found = tl.sum(gates, 1), tl.sum(ups, 1)
        if CODED:
            opened *= row_scale(tl.load(gate_scales + rows, mask=here, other=0.0), gate.dtype.element_ty)
            found *= row_scale(tl.load(up_scales + rows, mask=here, other=0.0), up.dtype.element_ty)
    kind = x.dtype.element_ty
    opened, found = opened.to(kind).to(tl.float32), found.to(kind).to(tl.float32)
    return (opened * tl.sigmoid(opened)).to(kind).to(tl.float32) * found


@triton.jit(do_not_specialize_on_alignment=["index", "scales", "gate_scales", "up_scales"])
def expert_gate_up_kernel(
    x, gate_up, index, shared_gate, shared_up, scales, gate_scales, up_scales, out, x_row, out_row, gate_step,
    WIDTH: tl.constexpr, INNER: tl.constexpr, EXPERTS: tl.constexpr, TOP_K: tl.constexpr, SHARED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CODED: tl.constexpr, GROUP: tl.constexpr, SHARED_CODED: tl.constexpr,
    SHARED_GROUP: tl.constexpr, DEPENDENT: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    if DEPENDENT:
        wait_for_others(INTERPRETED)
    PACKED: tl.constexpr = 8 if GROUP else 1
    token, tile = tl.program_id(0), tl.program_id(1)
    TILES: tl.constexpr = (INNER + ROWS - 1) // ROWS
    x += token * x_row
    out += token * out_row
    if tile < TOP_K * TILES:
        slot = tile % TOP_K  # an expert may be one token's first and another's last
        rows = tile // TOP_K * ROWS + tl.arange(0, ROWS)
        expert = tl.load(index + token * TOP_K + slot).to(tl.int64)
        here = (rows < INNER) & (expert >= 0) & (expert < EXPERTS)  # one that lives elsewhere gives zeros
        gate, scale = gate_up + expert * (2 * INNER * WIDTH // PACKED), scales
        if GROUP:
            scale += expert * (2 * INNER * WIDTH // GROUP)
        elif CODED:
            scale += expert * (2 * INNER)
        found = gated_rows(
            x, gate, gate + INNER * WIDTH // PACKED, scale, scale + INNER if CODED else scale, rows, here, 2 * INNER,
            WIDTH, ROWS, COLUMNS, CODED, GROUP, INTERPRETED,
        )  # fmt: skip
        tl.store(out + slot * INNER + rows, found.to(out.dtype.element_ty), mask=rows < INNER)
    elif SHARED > 0:
        rows = (tile - TOP_K * TILES) * ROWS + tl.arange(0, ROWS)
        found = gated_rows(
            x, shared_gate, shared_up, gate_scales, up_scales, rows, rows < SHARED, gate_step, WIDTH, ROWS, COLUMNS,
            SHARED_CODED, SHARED_GROUP, INTERPRETED,
        )  # fmt: skip
        tl.store(out + TOP_K * INNER + rows, found.to(out.dtype.element_ty), mask=rows < SHARED)


@triton.jit(do_not_specialize_on_alignment=["index", "weight", "scales", "shared_scales", "residual"])
def expert_down_kernel(
    hidden, down, index, weight, shared, residual, scales, shared_scales, out, hidden_row, residual_row, out_row,
    shared_step,
    HEIGHT: tl.constexpr, INNER: tl.constexpr, EXPERTS: tl.constexpr, TOP_K: tl.constexpr, SLOTS: tl.constexpr,
    SHARED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SHARED_COLUMNS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, CODED: tl.constexpr, GROUP: tl.constexpr, SHARED_CODED: tl.constexpr,
    SHARED_GROUP: tl.constexpr, DEPENDENT: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    if DEPENDENT:
        wait_for_others(INTERPRETED)
    token = tl.program_id(0)
    rows, slots = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.arange(0, SLOTS)
    real = rows < HEIGHT
    hidden += token * hidden_row
    expert = tl.load(index + token * TOP_K + slots, mask=slots < TOP_K, other=-1).to(tl.int64)
    known = (expert >= 0) & (expert < EXPERTS)
    shares = tl.load(weight + token * TOP_K + slots, mask=slots < TOP_K, other=0.0).to(tl.float32)

    read = real[:, None] & known[None, :]
    matrix_rows = expert[None, :] * HEIGHT + rows[:, None]
    if GROUP:
        here = tl.maximum(expert, 0)  # of others nothing is read
        places = down + (here[:, None] * HEIGHT + rows[None, :]) * (INNER // 8)
        grids = scales + here[:, None] * (HEIGHT * INNER // GROUP) + rows[None, :]
        found = tl.trans(
            rows_by_groups(
                hidden + tl.minimum(slots, TOP_K - 1) * INNER, places, grids, tl.trans(read), HEIGHT, SLOTS, ROWS,
                INNER, COLUMNS, WORDS, GROUP, INTERPRETED,
            )
        )  # fmt: skip
    else:
        columns = tl.arange(0, COLUMNS)
        summed = tl.zeros([ROWS, SLOTS, COLUMNS], tl.float32)
        for step in tl.static_range(0, INNER, COLUMNS):
            place = step + columns
            inside = place < INNER
            hidden_places = hidden + slots[:, None] * INNER + place[None, :]
            mine = tl.load(hidden_places, mask=known[:, None] & inside[None, :], other=0.0).to(tl.float32)
            places = down + matrix_rows[:, :, None] * INNER + place[None, None, :]
            matrices = tl.load(places, mask=read[:, :, None] & inside[None, None, :], other=0.0)
            summed += mine[None, :, :] * number(matrices)
        found = tl.sum(summed, 2)
        if CODED:
            found *= row_scale(tl.load(scales + matrix_rows, mask=read, other=0.0), down.dtype.element_ty)
    total = tl.sum(tl.where(known[None, :], found * shares[None, :], 0.0), 1)

    if SHARED_GROUP:
        places = shared + rows.to(tl.int64)[None, :] * (SHARED // 8)
        given = rows_by_groups(
            hidden + TOP_K * INNER + tl.arange(0, 1), places, shared_scales + rows[None, :], real[None, :],
            shared_step, 1, ROWS, SHARED, SHARED_COLUMNS, WORDS, SHARED_GROUP, INTERPRETED,
        )  # fmt: skip
        total += tl.reshape(given, [ROWS])
    elif SHARED > 0:
        wide = tl.arange(0, SHARED_COLUMNS)
        visited = tl.zeros([ROWS, SHARED_COLUMNS], tl.float32)
        for step in tl.static_range(0, SHARED, SHARED_COLUMNS):
            place = step + wide
            mine = tl.load(hidden + TOP_K * INNER + place, mask=place < SHARED, other=0.0).to(tl.float32)
            places = shared + rows[:, None] * SHARED + place[None, :]
            matrix = tl.load(places, mask=real[:, None] & (place < SHARED)[None, :], other=0.0)
            visited += mine[None, :] * number(matrix)
        given = tl.sum(visited, 1)
        if SHARED_CODED:
            given *= row_scale(tl.load(shared_scales + rows, mask=real, other=0.0), shared.dtype.element_ty)
        total += given
    if HAS_RESIDUAL:
        total += tl.load(residual + token * residual_row + rows, mask=real, other=0.0).to(tl.float32)
    tl.store(out + token * out_row + rows, total.to(out.dtype.element_ty), mask=real)


def expert_gate_up(
    x: torch.Tensor,
    gate_up: torch.Tensor,
    index: torch.Tensor,
    *,
    shared: Parts | None = None,
    scales: torch.Tensor | None = None,
    shared_scales: Parts | None = None,
    out: torch.Tensor | None = None,
    launch: RowLaunch | None = None,
    dependent: bool = False,
) -> torch.Tensor:
    """`kernels.experts.expert_gate_up` for few tokens. Nothing is allocated where `out` is given, and nothing waits for
    the device. A `dependent` launch begins before the kernel in front of it has ended. Raises InvalidSetting for what
    `supports_rows` refuses."""
    (gate, up), (gate_scales, up_scales) = two(shared), two(shared_scales)
    if gate is not None and up is not None and _kind(gate, gate_scales) != _kind(up, up_scales):
        raise InvalidSetting("gate and up of a shared expert are codes of two kinds: give both in one.")
    _check(x, index, inputs_of(gate_up, scales), ((gate_up, scales), (gate, gate_scales), (up, up_scales)))
    (tokens, width), (experts, both, _), top_k = x.shape, gate_up.shape, index.shape[1]
    group, shared_group = group_of(gate_up, scales), 0 if gate is None else group_of(gate, gate_scales)
    inner, behind = both // 2, 0 if gate is None else len(gate)
    out = x.new_empty(tokens, top_k * inner + behind) if out is None else out
    launch = launch or choose_gate_up_launch(width, weight_bytes(gate_up, group))
    tiles = top_k * triton.cdiv(inner, launch.rows) + triton.cdiv(behind, launch.rows)
    with on_device(x):
        expert_gate_up_kernel[(tokens, tiles)](
            x, as_read(gate_up), index, as_read(gate), as_read(up), _words(scales, group),
            _words(gate_scales, shared_group), _words(up_scales, shared_group), out, x.stride(0), out.stride(0),
            gate_scales.stride(0) // 2 if shared_group else 0,
            WIDTH=width, INNER=inner, EXPERTS=experts, TOP_K=top_k, SHARED=behind, ROWS=launch.rows,
            COLUMNS=launch.columns, CODED=scales is not None, GROUP=group, SHARED_CODED=gate_scales is not None,
            SHARED_GROUP=shared_group, num_warps=launch.warps, **overlapping(dependent),
        )  # fmt: skip
    return out


def expert_down(
    hidden: torch.Tensor,
    down: torch.Tensor,
    index: torch.Tensor,
    weight: torch.Tensor,
    *,
    shared: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    scales: torch.Tensor | None = None,
    shared_scales: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    launch: RowLaunch | None = None,
    dependent: bool = False,
) -> torch.Tensor:
    """`kernels.experts.expert_down`, likewise; `out` may be the `residual`."""
    (experts, height, _), (tokens, top_k) = down.shape, index.shape
    inner, behind = inputs_of(down, scales), 0 if shared is None else inputs_of(shared, shared_scales)
    group, shared_group = group_of(down, scales), 0 if shared is None else group_of(shared, shared_scales)
    _check(hidden, index, top_k * inner + behind, ((down, scales), (shared, shared_scales)))
    if weight.shape != index.shape or not weight.is_contiguous():
        raise InvalidSetting(f"weights {tuple(weight.shape)} do not go with an index {tuple(index.shape)}, row by row.")
    out = hidden.new_empty(tokens, height) if out is None else out
    slots = triton.next_power_of_2(top_k)
    launch = launch or choose_down_launch(inner, slots, weight_bytes(down, group))
    with on_device(hidden):
        expert_down_kernel[(tokens, triton.cdiv(height, launch.rows))](
            hidden, as_read(down), index, weight, as_read(shared), residual, _words(scales, group),
            _words(shared_scales, shared_group),
            out, hidden.stride(0),
            0 if residual is None else residual.stride(0), out.stride(0),
            shared_scales.stride(0) // 2 if shared_group else 0,
            HEIGHT=height, INNER=inner, EXPERTS=experts, TOP_K=top_k, SLOTS=slots, SHARED=behind, ROWS=launch.rows,
            COLUMNS=launch.columns, SHARED_COLUMNS=min(slots * launch.columns, triton.next_power_of_2(max(16, behind))),
            HAS_RESIDUAL=residual is not None, CODED=scales is not None, GROUP=group,
            SHARED_CODED=shared_scales is not None, SHARED_GROUP=shared_group,
            num_warps=launch.warps, **overlapping(dependent),
        )  # fmt: skip
    return out


def _kind(weight: torch.Tensor, scales: torch.Tensor | None) -> tuple[object, ...]:
    """What gate and up have in common, the steps of their grids among it."""
    group = group_of(weight, scales)
    return weight.dtype, group, scales.stride(0) if scales is not None and group else 0


def _words(scales: torch.Tensor | None, group: int) -> torch.Tensor | None:
    """Grids as words, which one load takes; scales of rows as they are."""
    return scales.view(torch.int32) if scales is not None and group else scales


def _check(rows, index, width, weights):
    """Whether rows of that width, an index and weights with their scales (either may be None) can be served."""
    weights = [(weight, scales) for weight, scales in weights if weight is not None]
    require(supports_rows(rows, *(weight for weight, _ in weights), codes=True))
    for weight, scales in weights:
        check_scales(weight, scales)
        if group_of(weight, scales) and weight.dtype is not torch.int32:
            raise InvalidSetting("codes in groups lie as files or a CPU hold them: move their module to a GPU.")
        part = group_of(weight, scales) and weight.dim() == 2 and scales.stride()[1:] == (2, 1)
        if scales is not None and not (scales.is_contiguous() or part):
            raise InvalidSetting("the kernel reads scales that lie side by side: call contiguous() on them.")
    if rows.shape[1] != width or len(index) != len(rows) or not index.is_contiguous():
        raise InvalidSetting(
            f"tokens {tuple(rows.shape)} and an index {tuple(index.shape)}, row by row, do not go with experts that "
            f"take {width} numbers a token."
        )
