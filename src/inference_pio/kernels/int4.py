"""int4 weights in groups along their inputs, each group with a step and a middle in bfloat16; the plain truth first."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from inference_pio.compat import has_fast_bfloat16_matmul, int4_packed_matmul, int4_packed_order
from inference_pio.kernels.few_coded_rows import few_coded_rows, runs_few_coded_rows
from inference_pio.kernels.frozen_weights import cast, frozen_linear

LARGEST_CODE = 15
MIDDLE_CODE = 8
RUN = 32
"""Codes are packed in runs of so many along a row: 16 bytes, of which each holds a code and the one 16 places on."""
# What a group's range is narrowed to before its grid is fitted: the rarest weights cost the others less than their own.
NARROWINGS = (1.0, 0.9, 0.8)
FITTINGS = 2
# Up to this many rows the packed product wins (576 x 1536: 0.63 ms against 1.3 at 64 rows, 1.3 against 1.5 at 128).
PACKED_ROWS = 128
BLOCK_ELEMENTS = 2**20
"""Weights of a block on a CPU, whose cache holds what is made of it."""
DEVICE_BLOCK_ELEMENTS = 2**24
"""On a GPU, which is told some 200 operations a block: 3.6 billion weights took 15 s in blocks of 2**20."""
CPU_DTYPES = (torch.bfloat16, torch.float32, torch.float16)

_CHOSEN: dict[tuple[torch.device, torch.dtype], str] = {}


def naive_int4_linear(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x` [..., K] times codes [N, K] of 0 to 15, none packed: weight = (code - 8) * step + middle, in float32."""
    step, middle = scale.float().transpose(0, 1).unbind(-1)
    grouped = codes.float().unflatten(-1, (scale.shape[0], -1))
    weight = ((grouped - MIDDLE_CODE) * step[..., None] + middle[..., None]).flatten(-2)
    return F.linear(x.float(), weight, None if bias is None else bias.float()).to(x.dtype)


# ---------------------------------------------------------------- codes


def fit_grid(groups: Tensor) -> Tensor:
    """Step and middle, bfloat16 [..., 2], of groups [..., G] of weights: those of the least squared error tried.

    Each narrowing of the group's range is followed by least squares between the weights and their codes.

    >>> fit_grid(torch.arange(16.0)[None]).tolist()
    [[1.0, 8.0]]
    """
    low, high = groups.amin(-1), groups.amax(-1)
    best, least = _held((high - low) / LARGEST_CODE, low), torch.full_like(low, torch.inf)
    for narrowed in NARROWINGS:
        step = (high - low) * (narrowed / LARGEST_CODE)
        grid = _held(step, (low + high - LARGEST_CODE * step) / 2)
        for fitting in range(FITTINGS + 1):
            codes = round_to_grid(groups, grid)
            error = (grid_values(codes, grid) - groups).square_().sum(-1)
            better = error < least
            best, least = torch.where(better[..., None], grid, best), torch.where(better, error, least)
            if fitting < FITTINGS:
                grid = _least_squares(groups, codes, grid)
    return best


def _held(step: Tensor, lowest: Tensor) -> Tensor:
    """A grid from its step and its lowest value, as bfloat16 holds it; a step of nothing becomes one of 1."""
    step = step.bfloat16()
    flat = step.float() < torch.finfo(torch.bfloat16).tiny
    middle = torch.where(flat, lowest, lowest + MIDDLE_CODE * step.float()).bfloat16()
    return torch.stack([torch.where(flat, torch.ones_like(step), step), middle], -1)


def _least_squares(groups: Tensor, codes: Tensor, before: Tensor) -> Tensor:
    """The grid that is nearest to the weights with these codes; the one before where all codes are one."""
    level, spread = codes.mean(-1), codes - codes.mean(-1, keepdim=True)
    squares = spread.square().sum(-1)
    step = (spread * groups).sum(-1) / squares.clamp(min=0.5)
    grid = torch.stack([step, groups.mean(-1) + (MIDDLE_CODE - level) * step], -1).bfloat16()
    usable = (squares > 0) & (step > torch.finfo(torch.bfloat16).tiny)
    return torch.where(usable[..., None], grid, before)


def round_to_grid(weights: Tensor, grid: Tensor) -> Tensor:
    """The nearest codes, as float32 whole numbers, of weights [..., G] on grids [..., 2]."""
    step, middle = grid.float()[..., None, :].unbind(-1)
    return ((weights - middle) / step).add_(MIDDLE_CODE).round_().clamp_(0, LARGEST_CODE)


def grid_values(codes: Tensor, grid: Tensor) -> Tensor:
    """What codes [..., G] stand for on grids [..., 2], in float32."""
    step, middle = grid.float()[..., None, :].unbind(-1)
    return torch.addcmul(middle, codes.float() - MIDDLE_CODE, step)


@torch.no_grad()
def quantize_groups(weight: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Packed codes (int8 [..., N, K / 2]) and grids (bfloat16 [..., K / group, N, 2]) of [N, K] or [E, N, K].

    Weights on the meta device give codes on the meta device.
    """
    codes = torch.empty((*weight.shape[:-1], weight.shape[-1] // 2), dtype=torch.int8, device=weight.device)
    shape = (*weight.shape[:-2], weight.shape[-1] // group, weight.shape[-2], 2)
    scale = torch.empty(shape, dtype=torch.bfloat16, device=weight.device)
    if weight.is_meta:  # a plan needs shapes alone: fitting grids to those of a 4B model took two minutes
        return codes, scale
    stack, stacked_codes, stacked_scale = (one if weight.dim() == 3 else one[None] for one in (weight, codes, scale))
    for experts, rows in _blocks(stack):
        groups = stack[experts, rows].float().unflatten(-1, (-1, group))
        grid = fit_grid(groups)
        stacked_codes[experts, rows] = pack_codes(round_to_grid(groups, grid).flatten(-2))
        stacked_scale[experts, :, rows] = grid.transpose(1, 2)
    return codes, scale


def _blocks(stack: Tensor) -> Iterator[tuple[slice, slice]]:
    """Which matrices of a stack, and which of their rows: whole ones together while they are small."""
    count, rows, columns = stack.shape
    most = DEVICE_BLOCK_ELEMENTS if stack.is_cuda else BLOCK_ELEMENTS
    taken = max(1, most // max(1, columns))
    together = max(1, taken // max(1, rows))
    for first in range(0, count, together):
        for start in range(0, rows, taken):
            yield slice(first, first + together), slice(start, start + taken)


def pack_codes(codes: Tensor) -> Tensor:
    """Codes of 0 to 15 [..., K], two to a byte, as int8 [..., K / 2]; `RUN` says which two."""
    low, high = codes.to(torch.uint8).unflatten(-1, (-1, 2, RUN // 2)).unbind(-2)
    return (low | high << 4).flatten(-2).contiguous().view(torch.int8)


def unpack_codes(packed: Tensor) -> Tensor:
    """The codes of 0 to 15, uint8 [..., K], of packed ones [..., K / 2] (or words [..., K / 8]), in any layout.

    >>> codes = torch.arange(64).remainder(16).to(torch.uint8)
    >>> torch.equal(unpack_codes(pack_codes(codes)), codes)
    True
    """
    if packed.dtype is torch.int32:
        halves = packed.view(torch.uint8).unflatten(-1, (-1, 2, 2))
        halves = torch.stack([halves & 15, halves >> 4], -1).flatten(-2)  # four codes of each half of a word
        return halves.transpose(-1, -2).flatten(-3)
    packed = portable_codes(packed) if packed.dtype is torch.uint8 else packed
    packed = packed.view(torch.uint8).unflatten(-1, (-1, RUN // 2))
    return torch.stack([packed & 15, packed >> 4], -2).flatten(-3)


def dequantize_groups(packed: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The weights that codes and grids stand for, [..., N, K]; exact in float32, rounded once in 16 bits."""
    groups = unpack_codes(packed).unflatten(-1, (scale.shape[-3], -1))
    return grid_values(groups, scale.transpose(-3, -2)).flatten(-2).to(dtype)


# ---------------------------------------------------------------- layouts


@torch.compiler.assume_constant_result
def _order() -> tuple[int, ...]:
    return int4_packed_order() or ()


def settled_codes(packed: Tensor) -> Tensor:
    """Codes as the device that they are on reads them: in the packed product's layout on a CPU that has one, in words
    of eight neighbours on a GPU.

    Codes in the CPU's layout are uint8, words int32, and codes as they go into files and to other devices int8.
    """
    if packed.is_cuda:
        return words_of(packed)
    order = _order() if packed.device.type == "cpu" else ()
    if packed.dtype is torch.uint8 or not order or packed.shape[-2] % len(order) or not packed.numel():
        return packed
    codes = unpack_codes(packed).unflatten(-2, (-1, len(order)))[..., list(order), :]
    low, high = codes.transpose(-2, -1).chunk(2, -1)
    return (low | high << 4).contiguous().view(packed.shape)


def words_of(packed: Tensor) -> Tensor:
    """Words, int32 [..., K / 8]: four even codes in the lower half of one, and in the upper half, each over its own
    neighbour, the odd ones: two neighbours make the two halves of a word that matrix units take by one mask.

    >>> hex(int(words_of(pack_codes(torch.arange(8).repeat(4)))[0]))
    '0x75316420'
    """
    if packed.dtype is torch.int32:
        return packed
    low, high = unpack_codes(packed).unflatten(-1, (-1, 2, 2, 2)).movedim(-1, -3).unbind(-1)  # [..., half, byte]
    return (low | high << 4).contiguous().flatten(-3).view(torch.int32)


def portable_codes(packed: Tensor) -> Tensor:
    """The inverse of `settled_codes`; works where the codes are."""
    if packed.dtype is torch.int8:
        return packed
    if packed.dtype is torch.int32:
        return pack_codes(unpack_codes(packed))
    order = torch.tensor(_order(), device=packed.device)
    stacked = packed.unflatten(-2, (-1, len(order))).flatten(-2).unflatten(-1, (-1, len(order) // 2))
    codes = torch.cat([stacked & 15, stacked >> 4], -1)[..., order.argsort()]
    return pack_codes(codes.transpose(-2, -1).flatten(-3, -2))


# ---------------------------------------------------------------- products


@torch.compiler.assume_constant_result
def choose_int4_backend(device: torch.device, dtype: torch.dtype) -> str:
    """What multiplies int4 weights for activations of a dtype on a device: said in receipts, decided here alone.

    "cpu-int4pack": torch's packed product, bfloat16 inside whatever the activations are, for few rows and for weights
    whose rows fill its blocks. "triton", on GPUs that run them: our kernels, which multiply codes with few rows, and
    for more make weights in the activations' dtype in one launch. "dequantize": such weights by torch's operations,
    block by block.
    """
    chosen = _CHOSEN.get((device, dtype))
    if chosen is None:
        packed = device.type == "cpu" and dtype in CPU_DTYPES and int4_packed_order() is not None
        ours = runs_few_coded_rows(device, dtype)
        chosen = _CHOSEN[device, dtype] = "cpu-int4pack" if packed else "triton" if ours else "dequantize"
    return chosen


def int4_linear(x: Tensor, packed: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x` [..., K] times packed int4 weights [N, K / 2] with grids [K / group, N, 2]: [..., N] in the dtype of `x`.

    Gradients flow to `x` and `bias`; codes and grids are frozen.
    """
    return frozen_linear(x, packed, scale, bias, _product, dequantize_groups)


def _product(x: Tensor, packed: Tensor, scale: Tensor) -> Tensor:
    shape = x.shape
    columns = shape[-1]
    few = x.numel() <= PACKED_ROWS * columns
    if few and packed.dtype is torch.uint8 and choose_int4_backend(x.device, x.dtype) == "cpu-int4pack":
        if columns != 2 * packed.shape[1]:
            raise RuntimeError(f"rows of {columns} cannot be multiplied with weights of {2 * packed.shape[1]} inputs.")
        rows = cast(x.reshape(-1, columns), torch.bfloat16).contiguous()
        y = int4_packed_matmul(rows, packed, columns // scale.shape[0], scale)
        return cast(y, x.dtype).view((*shape[:-1], packed.shape[0]))
    if x.device.type != "cpu":
        return _on_gpu(x, packed, scale)
    return _by_blocks(x, packed, scale)


def _on_gpu(x: Tensor, packed: Tensor, scale: Tensor) -> Tensor:
    """By the backend of the device; a compiler sees torch's operations, which it fuses."""
    words = packed.dtype is torch.int32 and not torch.compiler.is_compiling()
    if not words or choose_int4_backend(packed.device, x.dtype) != "triton":
        return F.linear(x, dequantize_groups(packed, scale, x.dtype))
    from inference_pio.kernels.triton.dequantize_groups import dequantize_groups as made

    if (found := few_coded_rows(x, packed, scale)) is not None:
        return found
    return cast(F.linear(x, made(packed, scale, x.dtype)), x.dtype)  # autocast would choose another


@torch.compiler.assume_constant_result
def _matrix_dtype(dtype: torch.dtype) -> torch.dtype:
    if dtype not in CPU_DTYPES:
        return dtype
    return torch.bfloat16 if has_fast_bfloat16_matmul() and int4_packed_order() else torch.float32


def _by_blocks(x: Tensor, packed: Tensor, scale: Tensor) -> Tensor:
    """Weights are made a block at a time, so that their temporary stays small."""
    rows = cast(x, _matrix_dtype(x.dtype)).reshape(-1, x.shape[-1])
    part = _settled_part if packed.dtype is torch.uint8 else _portable_part
    block = max(64, BLOCK_ELEMENTS // max(1, x.shape[-1]) // 64 * 64)  # whole blocks of every layout
    starts = range(0, packed.shape[0], block)
    parts = [part(rows, packed[start : start + block], scale[:, start : start + block]) for start in starts]
    y = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
    return cast(y, x.dtype).view((*x.shape[:-1], packed.shape[0]))


def _portable_part(rows: Tensor, packed: Tensor, scale: Tensor) -> Tensor:
    return F.linear(rows, dequantize_groups(packed, scale, rows.dtype))


def _settled_part(rows: Tensor, packed: Tensor, scale: Tensor) -> Tensor:
    """In the packed product's layout the weights lie transposed, block by block, and are multiplied as they lie."""
    order = list(_order())
    stacked = packed.view(-1, 2 * packed.shape[1], len(order) // 2)
    codes = torch.cat([stacked & 15, stacked >> 4], -1).unflatten(1, (scale.shape[0], -1))
    grids = scale.view(scale.shape[0], -1, len(order), 2)[:, :, order].float().transpose(0, 1)[:, :, None]
    weights = torch.addcmul(grids[..., 1], codes.float().sub_(MIDDLE_CODE), grids[..., 0]).to(rows.dtype)
    found = torch.matmul(rows, weights.flatten(1, 2))  # [blocks, M, rows of a block, in order]
    back = torch.tensor(order).argsort()
    return found[..., back].transpose(0, 1).flatten(-2)
