"""The parts around attention over a latent cache, for few tokens; the plain truth is in `kernels.latent_step`.

Queries are absorbed by one program for some columns of a head, and one more program a token puts it into the cache.
"""

from __future__ import annotations

import torch

import triton
import triton.language as tl
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.triton.experts_launch import RowLaunch, choose_absorb_launch, choose_expand_launch
from inference_pio.kernels.triton.launch import on_device
from inference_pio.kernels.triton.overlap import overlapping, wait_for_others
from inference_pio.kernels.triton.row_support import supports_rows
from inference_pio.kernels.triton.support import require


@triton.jit
def rotate_row(row, out, cos, sin, ROPE: tl.constexpr, HALF: tl.constexpr, INTERLEAVED: tl.constexpr):
    """Turn the numbers at `row` by the angles at `cos` and `sin`, and round where the library rounds: launches must not
    allow products and sums to be fused, which leaves a rounding out."""
    kind = row.dtype.element_ty
    lanes = tl.arange(0, HALF)
    real = lanes < ROPE // 2
    STEP: tl.constexpr = 2 if INTERLEAVED else 1
    APART: tl.constexpr = 1 if INTERLEAVED else ROPE // 2
    LATER: tl.constexpr = 0 if INTERLEAVED else ROPE // 2  # where the second half's angles stand
    first = tl.load(row + lanes * STEP, mask=real, other=0.0).to(tl.float32)
    second = tl.load(row + lanes * STEP + APART, mask=real, other=0.0).to(tl.float32)
    c1 = tl.load(cos + lanes, mask=real, other=0.0).to(kind).to(tl.float32)
    s1 = tl.load(sin + lanes, mask=real, other=0.0).to(kind).to(tl.float32)
    c2 = tl.load(cos + lanes + LATER, mask=real, other=0.0).to(kind).to(tl.float32)
    s2 = tl.load(sin + lanes + LATER, mask=real, other=0.0).to(kind).to(tl.float32)
    before = (first * c1).to(kind).to(tl.float32) - (second * s1).to(kind).to(tl.float32)
    behind = (second * c2).to(kind).to(tl.float32) + (first * s2).to(kind).to(tl.float32)
    tl.store(out + lanes, before.to(kind).to(out.dtype.element_ty), mask=real)
    tl.store(out + lanes + ROPE // 2, behind.to(kind).to(out.dtype.element_ty), mask=real)


@triton.jit
def store_token(token, kv, norm_weight, cos, sin, cache, lengths, kv_row, cache_row, cache_token, length_step, capacity,
                eps, WIDTH: tl.constexpr, PADDED: tl.constexpr, ROPE: tl.constexpr, HALF: tl.constexpr,
                INTERLEAVED: tl.constexpr):  # fmt: skip
    """Put a token behind the others of its row of the cache, if there is room."""
    place = tl.load(lengths + token * length_step) - 1
    if (place >= 0) & (place < capacity):
        kv += token * kv_row
        cache += token.to(tl.int64) * cache_row + place.to(tl.int64) * cache_token
        columns = tl.arange(0, PADDED)
        real = columns < WIDTH
        latent = tl.load(kv + columns, mask=real, other=0.0).to(tl.float32)
        latent *= tl.rsqrt(tl.sum(latent * latent, 0) / WIDTH + eps)
        latent = latent.to(kv.dtype.element_ty).to(tl.float32)
        latent *= tl.load(norm_weight + columns, mask=real, other=0.0).to(tl.float32)
        tl.store(cache + columns, latent.to(cache.dtype.element_ty), mask=real)
        rotate_row(kv + WIDTH, cache + WIDTH, cos, sin, ROPE, HALF, INTERLEAVED)


@triton.jit(do_not_specialize=["length_step", "capacity"], do_not_specialize_on_alignment=["positions", "lengths"])
def latent_store_kernel(
    kv, norm_weight, cos, sin, positions, cache, lengths, kv_row, cache_row, cache_token, length_step, capacity, eps,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, ROPE: tl.constexpr, HALF: tl.constexpr, INTERLEAVED: tl.constexpr,
    DEPENDENT: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    if DEPENDENT:
        wait_for_others(INTERPRETED)
    token = tl.program_id(0)
    turn = tl.load(positions + token).to(tl.int64) * ROPE
    store_token(
        token, kv, norm_weight, cos + turn, sin + turn, cache, lengths, kv_row, cache_row, cache_token, length_step,
        capacity, eps, WIDTH, PADDED, ROPE, HALF, INTERLEAVED,
    )  # fmt: skip


@triton.jit(do_not_specialize=["length_step", "capacity"], do_not_specialize_on_alignment=["positions", "lengths"])
def absorb_kernel(
    query, up, absorbed, turned, cos, sin, positions, query_row, absorbed_row, turned_row,
    kv, norm_weight, cache, lengths, kv_row, cache_row, cache_token, length_step, capacity, eps,
    HEADS: tl.constexpr, NOPE: tl.constexpr, VALUE: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
    ROPE: tl.constexpr, HALF: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INTERLEAVED: tl.constexpr,
    STORES: tl.constexpr, DEPENDENT: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    if DEPENDENT:
        wait_for_others(INTERPRETED)
    token, tile = tl.program_id(0), tl.program_id(1)
    turn = tl.load(positions + token).to(tl.int64) * ROPE
    cos += turn
    sin += turn
    TILES: tl.constexpr = (WIDTH + COLUMNS - 1) // COLUMNS
    if tile < HEADS * TILES:
        head = tile // TILES
        mine = query + token * query_row + head * (NOPE + ROPE)
        columns = tile % TILES * COLUMNS + tl.arange(0, COLUMNS)
        real = columns < WIDTH
        keys = up + head * (NOPE + VALUE) * WIDTH
        rows = tl.arange(0, ROWS)
        summed = tl.zeros([ROWS, COLUMNS], tl.float32)
        for step in tl.static_range(0, NOPE, ROWS):
            row = step + rows
            asked = tl.load(mine + row, mask=row < NOPE, other=0.0).to(tl.float32)
            places = keys + row[:, None] * WIDTH + columns[None, :]
            matrix = tl.load(places, mask=(row < NOPE)[:, None] & real[None, :], other=0.0)
            summed += asked[:, None] * matrix.to(tl.float32)
        found = tl.sum(summed, 0).to(absorbed.dtype.element_ty)
        tl.store(absorbed + token * absorbed_row + head * WIDTH + columns, found, mask=real)
        if tile % TILES == 0:
            rotate_row(mine + NOPE, turned + token * turned_row + head * ROPE, cos, sin, ROPE, HALF, INTERLEAVED)
    elif STORES:
        store_token(
            token, kv, norm_weight, cos, sin, cache, lengths, kv_row, cache_row, cache_token, length_step, capacity,
            eps, WIDTH, PADDED, ROPE, HALF, INTERLEAVED,
        )  # fmt: skip


@triton.jit
def expand_kernel(
    attended, up, out, attended_row, out_row,
    NOPE: tl.constexpr, VALUE: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DEPENDENT: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    if DEPENDENT:
        wait_for_others(INTERPRETED)
    token, tile = tl.program_id(0), tl.program_id(1)
    TILES: tl.constexpr = (VALUE + ROWS - 1) // ROWS
    head = tile // TILES
    rows, columns = tile % TILES * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    mine = attended + token * attended_row + head * WIDTH
    values = up + (head * (NOPE + VALUE) + NOPE) * WIDTH
    summed = tl.zeros([ROWS, COLUMNS], tl.float32)
    for step in tl.static_range(0, WIDTH, COLUMNS):
        place = step + columns
        inside = place < WIDTH
        seen = tl.load(mine + place, mask=inside, other=0.0).to(tl.float32)
        places = values + rows[:, None] * WIDTH + place[None, :]
        matrix = tl.load(places, mask=(rows < VALUE)[:, None] & inside[None, :], other=0.0)
        summed += seen[None, :] * matrix.to(tl.float32)
    found = tl.sum(summed, 1).to(out.dtype.element_ty)
    tl.store(out + token * out_row + head * VALUE + rows, found, mask=rows < VALUE)


def latent_store(
    kv: torch.Tensor,
    norm_weight: torch.Tensor,
    eps: float,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor,
    cache: torch.Tensor,
    lengths: torch.Tensor,
    *,
    interleaved: bool,
    dependent: bool = False,
) -> None:
    """`kernels.latent_step.latent_store` in one launch. Nothing is allocated, nothing waits for the device. A
    `dependent` launch begins before the kernel in front of it has ended. Raises InvalidSetting for what the kernel does
    not serve.
    """
    _check_store(kv, norm_weight, cache, lengths)
    rope = kv.shape[1] - len(norm_weight)
    _check_tables(kv, cos, sin, positions, rope)
    with on_device(kv):
        latent_store_kernel[(len(kv),)](
            kv, norm_weight, cos, sin, positions, cache, lengths, *_places(kv, cache, lengths), eps,
            **_widths(len(norm_weight), rope), INTERLEAVED=interleaved, num_warps=1,
            enable_fp_fusion=False, **overlapping(dependent),
        )  # fmt: skip


def absorb(
    query: torch.Tensor,
    up: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor,
    *,
    heads: int,
    nope: int,
    interleaved: bool,
    out: tuple[torch.Tensor, torch.Tensor] | None = None,
    launch: RowLaunch | None = None,
    dependent: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`kernels.latent_step.absorb`, likewise; nothing is allocated where `out` is given."""
    return _absorb(query, up, cos, sin, positions, heads, nope, interleaved, out, launch, dependent)


def absorb_and_store(
    query: torch.Tensor,
    up: torch.Tensor,
    kv: torch.Tensor,
    norm_weight: torch.Tensor,
    eps: float,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor,
    cache: torch.Tensor,
    lengths: torch.Tensor,
    *,
    heads: int,
    nope: int,
    interleaved: bool,
    out: tuple[torch.Tensor, torch.Tensor] | None = None,
    launch: RowLaunch | None = None,
    dependent: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both of the above in one launch, likewise."""
    _check_store(kv, norm_weight, cache, lengths)
    store = (kv, norm_weight, eps, cache, lengths)
    return _absorb(query, up, cos, sin, positions, heads, nope, interleaved, out, launch, dependent, store)


def expand(
    attended: torch.Tensor,
    up: torch.Tensor,
    nope: int,
    out: torch.Tensor | None = None,
    *,
    launch: RowLaunch | None = None,
    dependent: bool = False,
) -> torch.Tensor:
    """`kernels.latent_step.expand`, likewise."""
    require(supports_rows(attended.flatten(1), up))
    tokens, heads, width = attended.shape
    value = len(up) // heads - nope
    if attended.stride(1) != width or up.shape != (heads * (nope + value), width) or value < 1:
        raise InvalidSetting(f"weights {tuple(up.shape)} do not expand {tuple(attended.shape)}, row by row.")
    out = attended.new_empty(tokens, heads * value) if out is None else out
    launch = launch or choose_expand_launch(width)
    with on_device(attended):
        expand_kernel[(tokens, heads * triton.cdiv(value, launch.rows))](
            attended, up, out, attended.stride(0), out.stride(0),
            NOPE=nope, VALUE=value, WIDTH=width, ROWS=launch.rows, COLUMNS=launch.columns, num_warps=launch.warps,
            **overlapping(dependent),
        )  # fmt: skip
    return out


def _absorb(query, up, cos, sin, positions, heads, nope, interleaved, out, launch, dependent, store=None):
    require(supports_rows(query, up))
    tokens, width = len(query), up.shape[1]
    rope, value = query.shape[1] // heads - nope, len(up) // heads - nope
    if query.shape[1] != heads * (nope + rope) or len(up) != heads * (nope + value) or min(rope, value) < 1:
        raise InvalidSetting(
            f"queries {tuple(query.shape)} and weights {tuple(up.shape)} are not {heads} heads of {nope} and more."
        )
    _check_tables(query, cos, sin, positions, rope)
    out = out or (query.new_empty(tokens, heads, width), query.new_empty(tokens, heads, rope))
    launch = launch or choose_absorb_launch(nope, width)
    kv, norm_weight, eps, cache, lengths = store or (None, None, 0.0, None, None)
    places = _places(kv, cache, lengths) if store else (0, 0, 0, 0, 0)
    with on_device(query):
        absorb_kernel[(tokens, heads * triton.cdiv(width, launch.columns) + bool(store))](
            query, up, *out, cos, sin, positions, query.stride(0), out[0].stride(0), out[1].stride(0),
            kv, norm_weight, cache, lengths, *places, eps,
            HEADS=heads, NOPE=nope, VALUE=value, **_widths(width, rope), ROWS=launch.rows, COLUMNS=launch.columns,
            INTERLEAVED=interleaved, STORES=store is not None, num_warps=launch.warps,
            enable_fp_fusion=False, **overlapping(dependent),
        )  # fmt: skip
    return out


def _widths(width, rope):
    half = triton.next_power_of_2(rope // 2)
    return {"WIDTH": width, "PADDED": triton.next_power_of_2(width), "ROPE": rope, "HALF": half}


def _places(kv, cache, lengths):
    """Strides of tokens and of their cache, whether each row has a length of its own, and the capacity."""
    return kv.stride(0), cache.stride(0), cache.stride(1), int(lengths.numel() > 1), cache.shape[1]


def _check_store(kv, norm_weight, cache, lengths):
    require(supports_rows(kv, norm_weight))
    if cache.shape[0] != len(kv) or cache.shape[2:] != (1, kv.shape[1]) or cache.stride(-1) != 1:
        raise InvalidSetting(f"tokens {tuple(kv.shape)} have no place in a cache {tuple(cache.shape)}.")
    if cache.dtype != kv.dtype or lengths.dtype != torch.int32 or lengths.numel() not in (1, len(kv)):
        raise InvalidSetting(f"a cache of {cache.dtype} and {lengths.numel()} lengths of {lengths.dtype} do not serve.")


def _check_tables(rows, cos, sin, positions, rope):
    tables = (cos, sin)
    if any(table.dim() != 2 or table.shape[1] != rope or not table.is_contiguous() for table in tables) or rope % 2:
        raise InvalidSetting(f"tables {tuple(cos.shape)} do not turn {rope} numbers a row, row by row.")
    if positions.dtype != torch.int32 or positions.shape != (len(rows),) or not positions.is_contiguous():
        raise InvalidSetting(f"{len(rows)} tokens have as many positions in int32, and not {tuple(positions.shape)}.")
