"""bfloat16 weights in 12 bits, to the bit: eight for sign and mantissa, four for the exponent; the plain truth first.

A row's exponents are counted from its largest one down: 15 have an index, the few below them are listed one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from inference_pio.kernels.frozen_weights import remade_linear
from inference_pio.kernels.triton.support import supports_device

INDEXED = 15
LISTED = 0
"""The index of weights that are listed."""
COLUMNS = 16
"""A row is made of so many, so that a thread may read their codes in 16 bytes and their indices in eight."""
PAIRS = (0, 2, 1, 3)
"""Of eight columns, the pairs of neighbours whose indices lie in a byte each, the first in its low bits. So four bytes
read as one number hold indices in both of its halves where four codes hold what goes with them."""
ROWS = 16
"""So many rows begin together in the lists."""
MOST_ELEMENTS = 2**31 - 1
BLOCK_ELEMENTS = 2**20
SIGN_AND_MANTISSA = -0x7F81  # 0x807F
MANTISSA_BITS = 7
LARGEST_EXPONENT = 255


class Packed(NamedTuple):
    """A matrix [N, K], or a stack of them [E, N, K]; all tensors but the last two have those dimensions in front."""

    codes: Tensor
    """uint8 [..., N, K]: the sign in the highest bit, the mantissa below; 0 for weights that are listed."""
    indices: Tensor
    """uint8 [..., N, K / 2]: two indices a byte. An exponent is its row's lowest one, plus its index, less 1."""
    lowest: Tensor
    """uint8 [..., N]."""
    listed_rows: Tensor
    """int16 [..., N / 16], rounded up: a bit for each of 16 rows that has listed weights. Most have none."""
    starts: Tensor
    """int32 [..., N / 16 + 1], rounded up: where the listed weights of each 16 rows begin, and where the last end."""
    places: Tensor
    """int32: row * K + column of each listed weight within its matrix, in order."""
    values: Tensor
    """bfloat16: the listed weights."""


def naive_weights(packed: Packed) -> Tensor:
    """The matrix [N, K] that packed tensors stand for, bfloat16, weight by weight from the definition."""
    codes, lowest = packed.codes.tolist(), packed.lowest.tolist()
    bits = torch.zeros(packed.codes.shape, dtype=torch.int32)
    for row, of_row in enumerate(codes):
        for column, code in enumerate(of_row):
            byte = int(packed.indices[row, column // 8 * 4 + PAIRS.index(column % 8 // 2)])
            index = byte >> 4 if column % 2 else byte & 15
            exponent = max(lowest[row] + index - 1, 0)
            bits[row, column] = (code >> 7) << 15 | exponent << MANTISSA_BITS | code & 0x7F
    weights = bits.to(torch.int16).view(torch.bfloat16)
    for place, value in zip(packed.places.tolist(), packed.values, strict=True):
        weights[divmod(place, len(codes[0]))] = value
    return weights


def naive_exponent12_linear(x: Tensor, packed: Packed, bias: Tensor | None = None) -> Tensor:
    """`x` [..., K] times the matrix that packed tensors stand for, in float32: [..., N]."""
    return F.linear(x.float(), naive_weights(packed).float(), None if bias is None else bias.float()).to(x.dtype)


# ---------------------------------------------------------------- packing


def lowest_exponents(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The exponents of bfloat16 weights [..., K], as int16, and the lowest of each row that has an index [...].

    >>> lowest_exponents(torch.tensor([[1.0, -0.5, 2.0**-14, 2.0**-15]], dtype=torch.bfloat16))
    (tensor([[127, 126, 113, 112]], dtype=torch.int16), tensor([113], dtype=torch.int16))
    """
    exponents = weight.view(torch.int16) >> MANTISSA_BITS & LARGEST_EXPONENT
    return exponents, (exponents.amax(-1) - (INDEXED - 1)).clamp(min=0)


def listed_share(weight: Tensor) -> float:
    """Which share of bfloat16 weights [..., N, K] would have to be listed."""
    rows = weight.detach().reshape(-1, weight.shape[-1])
    listed = sum(int((exponents < lowest[:, None]).sum()) for exponents, lowest in map(lowest_exponents, _blocks(rows)))
    return listed / max(rows.numel(), 1)


@torch.no_grad()
def pack(weight: Tensor) -> Packed:
    """bfloat16 weights [N, K] or [E, N, K], K a multiple of 16, packed. On the meta device nothing is listed.

    >>> packed = pack(torch.ones(2, 16, dtype=torch.bfloat16))
    >>> packed.codes.unique().tolist(), packed.lowest.tolist(), packed.places.numel()
    ([0], [113, 113], 0)
    """
    made = _empty(weight)
    if weight.is_meta:
        return made
    rows, columns = weight.shape[-2:]
    counts = made.lowest.new_empty(made.lowest.numel(), dtype=torch.int32)
    into = (made.codes.view(-1, columns), made.indices.view(-1, columns // 2), made.lowest.view(-1), counts)
    places, values = [made.places], [made.values]
    start = 0
    for block in _blocks(weight.reshape(-1, columns)):
        *parts, listed = _packed_rows(block)
        for whole, part in zip(into, (*parts, listed.sum(-1)), strict=True):
            whole[start : start + len(block)] = part
        row, column = listed.nonzero(as_tuple=True)
        places.append(((row + start) % rows * columns + column).to(torch.int32))
        values.append(block[row, column])
        start += len(block)
    of_runs = F.pad(counts.view(-1, rows), (0, -rows % ROWS)).unflatten(-1, (-1, ROWS))
    return made._replace(
        listed_rows=_listed_rows(of_runs).view(made.listed_rows.shape), starts=_starts(of_runs).view(made.starts.shape),
        places=torch.cat(places), values=torch.cat(values),
    )  # fmt: skip


def _empty(weight: Tensor) -> Packed:
    """What a weight becomes, without values, and with nothing listed."""
    *outer, rows, columns = weight.shape
    runs = -(-rows // ROWS)
    shapes = ((rows, columns), (rows, columns // 2), (rows,), (runs,), (runs + 1,))
    dtypes = (torch.uint8, torch.uint8, torch.uint8, torch.int16, torch.int32)
    parts = (
        torch.empty(*outer, *shape, dtype=dtype, device=weight.device)
        for shape, dtype in zip(shapes, dtypes, strict=True)
    )
    lists = (torch.empty(0, dtype=dtype, device=weight.device) for dtype in (torch.int32, torch.bfloat16))
    return Packed(*parts, *lists)


def _packed_rows(rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes, indices and lowest exponents of rows [n, K], and where weights are to be listed."""
    exponents, lowest = lowest_exponents(rows)
    listed = exponents < lowest[:, None]
    index = (exponents - lowest[:, None] + 1).masked_fill_(listed, LISTED).to(torch.uint8)
    low, high = index.unflatten(-1, (-1, 2, 2, 2)).transpose(-3, -2).unbind(-1)
    bits = rows.view(torch.int16)
    code = ((bits >> 8 & 0x80) | (bits & 0x7F)).masked_fill_(listed, 0)
    return code.to(torch.uint8), (low | high << 4).flatten(-3), lowest.to(torch.uint8), listed


def _listed_rows(counts: Tensor) -> Tensor:
    """Which rows of each run have listed weights [E, runs], given how many each has [E, runs, ROWS]."""
    bits = 1 << torch.arange(ROWS, dtype=torch.int32, device=counts.device)
    return ((counts > 0) * bits).sum(-1, dtype=torch.int32).to(torch.int16)  # the highest bit becomes a sign


def _starts(counts: Tensor) -> Tensor:
    """Where the listed weights of each run of rows begin [E, runs + 1], given how many each row has [E, runs, ROWS]."""
    of_runs = counts.sum(-1)
    ends = of_runs.flatten().cumsum(0, dtype=torch.int32).view_as(of_runs)
    first = F.pad(ends[:-1, -1:], (0, 0, 1, 0))
    return torch.cat([first, ends], -1)


def _blocks(rows: Tensor) -> Iterator[Tensor]:
    return iter(rows.split(max(ROWS, BLOCK_ELEMENTS // max(1, rows.shape[-1]))))


# ---------------------------------------------------------------- unpacking


def unpack(packed: Packed, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """The weights that packed tensors stand for, [..., N, K], every bit as it was; exact in bfloat16 and wider."""
    if packed.codes.is_cuda and packed.codes.dim() == 2 and runs_unpacking(packed):
        from inference_pio.kernels.triton.exponent12 import exponent12_unpack

        return exponent12_unpack(packed).to(dtype)
    weights = _by_codes(packed)
    if packed.places.numel():
        weights.view(-1)[_places_in_stack(packed)] = packed.values
    return weights.to(dtype)


def runs_unpacking(packed: Packed) -> bool:
    """Whether our kernel unpacks: not for a compiler, which sees torch's operations."""
    whole = all(part.is_contiguous() for part in packed)
    return whole and not torch.compiler.is_compiling() and bool(supports_device(packed.codes.device))


def unpack_one(packed: Packed, number: int) -> Tensor:
    """Matrix `number` of a stack, bfloat16 [N, K]; no other one is unpacked."""
    starts = packed.starts[number]
    listed = slice(*starts[[0, -1]].tolist())
    parts = (part[number] for part in packed[:4])
    return unpack(Packed(*parts, starts - starts[0], packed.places[listed], packed.values[listed]))


def _by_codes(packed: Packed) -> Tensor:
    """The weights that have an index; what stands at those that have none is without meaning."""
    codes, indices = packed.codes.flatten(0, -2), packed.indices.flatten(0, -2)
    bits = torch.empty(codes.shape, dtype=torch.int16, device=codes.device)
    rows = max(1, BLOCK_ELEMENTS // max(1, codes.shape[-1]))
    blocks = (tensor.split(rows) for tensor in (bits, codes, indices, packed.lowest.flatten()))
    for made, code, index, lowest in zip(*blocks, strict=True):
        exponents = _indices(index).add_(lowest.to(torch.int16).sub_(1)[:, None]).bitwise_left_shift_(MANTISSA_BITS)
        # signed bytes bring their sign along, and it stays where bfloat16 has it
        torch.bitwise_or(code.view(torch.int8).to(torch.int16).bitwise_and_(SIGN_AND_MANTISSA), exponents, out=made)
    return bits.view(torch.bfloat16).view(packed.codes.shape)


def _indices(packed: Tensor) -> Tensor:
    """Indices [n, K] as int16 of packed ones [n, K / 2]."""
    pairs = packed.unflatten(-1, (-1, 2, 2)).transpose(-2, -1)
    return torch.stack([pairs & 15, pairs >> 4], -1).flatten(-4).to(torch.int16)


def _places_in_stack(packed: Packed) -> Tensor:
    places = packed.places.long()
    if packed.codes.dim() == 2:
        return places
    first, end = packed.starts[:, 0], packed.starts[:, -1]
    number = torch.arange(len(first), device=places.device).repeat_interleave((end - first).long())
    return places + number * packed.codes[0].numel()


# ---------------------------------------------------------------- products


def exponent12_linear(x: Tensor, packed: Packed, bias: Tensor | None = None) -> Tensor:
    """`x` [..., K] times the weights [N, K], by the very call that a linear layer makes: the same bits come out.

    Gradients flow to `x` and `bias`; the weights are frozen.
    """
    return remade_linear(x, lambda dtype: unpack(packed, dtype), bias)
