"""fp8: one byte a weight (e4m3), one bfloat16 scale a row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from inference_pio.formats.compressed_embedding import CompressedEmbedding
from inference_pio.formats.compressed_experts import CompressedExperts
from inference_pio.formats.compressed_linear import CompressedLinear
from inference_pio.formats.weight_format import WeightFormat
from inference_pio.kernels.fp8 import (
    bare,
    choose_fp8_backend,
    dequantize_rows_fp8,
    fp8_linear,
    quantize_rows_fp8,
    round_to_fp8,
    scale_of,
)
from inference_pio.kernels.gptq import Grid, gptq

GRID = Grid(
    fit=lambda rows: scale_of(rows)[..., None],
    round=lambda rows, scale: bare(round_to_fp8(rows, scale[..., 0]), torch.float32),
    values=lambda codes, scale: codes * scale.float(),
)


class Fp8(WeightFormat):
    """Buffers `*_fp8` [..., N, K], the bits of e4m3 in uint8, and `*_scale` [..., N]."""

    format = activations = "fp8"
    told = "fp8 codes with a scale a row"
    dequantized = staticmethod(dequantize_rows_fp8)
    product = staticmethod(fp8_linear)
    backend = staticmethod(choose_fp8_backend)

    @classmethod
    def cost(cls, device: torch.device, dtype: torch.dtype) -> str | None:
        if device.type == "cpu":
            return "fp8 weights are cast at each product on a CPU: memory is saved, and time is lost."
        return super().cost(device, dtype)

    @staticmethod
    def quantize(weight: Tensor, group: int) -> tuple[Tensor, Tensor]:
        return quantize_rows_fp8(weight)

    @staticmethod
    def quantize_with_gram(weight: Tensor, gram: Tensor, rows: Sequence[int], group: int) -> tuple[Tensor, Tensor]:
        codes, scale = gptq(weight, gram, weight.shape[-1], GRID, rows)
        return round_to_fp8(codes, torch.ones_like(scale[..., 0, 0])), scale[..., 0, 0]


class Fp8Linear(Fp8, CompressedLinear):
    """A linear layer in fp8.

    >>> import torch
    >>> Fp8Linear.from_linear(torch.nn.Linear(64, 48, bias=False))(torch.zeros(5, 64)).shape
    torch.Size([5, 48])
    """

    weight_fp8: Tensor
    weight_scale: Tensor


class Fp8Embedding(Fp8, CompressedEmbedding):
    """An embedding in fp8."""

    weight_fp8: Tensor
    weight_scale: Tensor


class Fp8Experts(Fp8, CompressedExperts):
    """Fused experts in fp8."""

    gate_up_fp8: Tensor
    gate_up_scale: Tensor
    down_fp8: Tensor
    down_scale: Tensor
