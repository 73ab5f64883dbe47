"""int4: half a byte a weight, and for each group of weights along the inputs a step and a middle in bfloat16."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from inference_pio.formats.compressed_experts import CompressedExperts
from inference_pio.formats.compressed_linear import CompressedLinear
from inference_pio.formats.weight_format import WeightFormat
from inference_pio.kernels.gptq import Grid, gptq
from inference_pio.kernels.int4 import (
    choose_int4_backend,
    dequantize_groups,
    fit_grid,
    grid_values,
    int4_linear,
    pack_codes,
    portable_codes,
    quantize_groups,
    round_to_grid,
    settled_codes,
)

GRID = Grid(fit=fit_grid, round=round_to_grid, values=grid_values)

GROUPS = (32, 64, 128)


class Int4(WeightFormat):
    """Buffers `*_int4` [..., N, K / 2] and `*_scale` [..., K / group, N, 2]."""

    format = "int4"
    told = "int4 codes with a step and a middle a group"
    grouped = True
    dequantized = staticmethod(dequantize_groups)
    product = staticmethod(int4_linear)
    backend = staticmethod(choose_int4_backend)
    settled = staticmethod(settled_codes)
    portable = staticmethod(portable_codes)

    @staticmethod
    def quantize(weight: Tensor, group: int) -> tuple[Tensor, Tensor]:
        return quantize_groups(weight, group)

    @staticmethod
    def quantize_with_gram(weight: Tensor, gram: Tensor, rows: Sequence[int], group: int) -> tuple[Tensor, Tensor]:
        codes, grids = gptq(weight, gram, group, GRID, rows)
        return pack_codes(codes), grids.transpose(-3, -2)

    @classmethod
    def why_not(cls, columns: int, group: int) -> str | None:
        if columns % group == 0:
            return None
        fitting = [size for size in GROUPS if columns % size == 0]
        way_out = f"group_size={max(fitting)} does" if fitting else f"none of {', '.join(map(str, GROUPS))} does"
        return f"groups of {group} do not divide its {columns} inputs ({way_out})"


class Int4Linear(Int4, CompressedLinear):
    """A linear layer in int4.

    >>> import torch
    >>> layer = Int4Linear.from_linear(torch.nn.Linear(64, 48), group=32)
    >>> layer
    Int4Linear(in_features=64, out_features=48, bias=True, group=32)
    >>> layer(torch.zeros(2, 5, 64)).shape
    torch.Size([2, 5, 48])
    """

    weight_int4: Tensor
    weight_scale: Tensor


class Int4Experts(Int4, CompressedExperts):
    """Fused experts in int4."""

    gate_up_int4: Tensor
    gate_up_scale: Tensor
    down_int4: Tensor
    down_scale: Tensor
