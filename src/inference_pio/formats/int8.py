"""int8: one signed byte a weight, one bfloat16 scale a row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from inference_pio.formats.compressed_embedding import CompressedEmbedding
from inference_pio.formats.compressed_experts import CompressedExperts
from inference_pio.formats.compressed_linear import CompressedLinear
from inference_pio.formats.weight_format import WeightFormat
from inference_pio.kernels.gptq import Grid, gptq
from inference_pio.kernels.int8 import (
    choose_int8_backend,
    dequantize_rows,
    int8_linear,
    quantize_rows,
    round_to_scale,
    scale_of,
)

GRID = Grid(
    fit=lambda rows: scale_of(rows)[..., None],
    round=lambda rows, scale: round_to_scale(rows, scale[..., 0]),
    values=lambda codes, scale: codes * scale.float(),
)


class Int8(WeightFormat):
    """Buffers `*_int8` [..., N, K] and `*_scale` [..., N]."""

    format = activations = "int8"
    told = "int8 codes with a scale a row"
    row_by_row = True
    dequantized = staticmethod(dequantize_rows)
    product = staticmethod(int8_linear)
    backend = staticmethod(choose_int8_backend)

    @staticmethod
    def quantize(weight: Tensor, group: int) -> tuple[Tensor, Tensor]:
        return quantize_rows(weight)

    @staticmethod
    def quantize_with_gram(weight: Tensor, gram: Tensor, rows: Sequence[int], group: int) -> tuple[Tensor, Tensor]:
        codes, scale = gptq(weight, gram, weight.shape[-1], GRID, rows)
        return codes.to(torch.int8), scale[..., 0, 0]


class Int8Linear(Int8, CompressedLinear):
    """A linear layer in int8.

    >>> import torch
    >>> layer = Int8Linear.from_linear(torch.nn.Linear(64, 48))
    >>> layer
    Int8Linear(in_features=64, out_features=48, bias=True)
    >>> layer(torch.zeros(2, 5, 64)).shape
    torch.Size([2, 5, 48])
    """

    weight_int8: Tensor
    weight_scale: Tensor


class Int8Embedding(Int8, CompressedEmbedding):
    """An embedding in int8.

    >>> import torch
    >>> Int8Embedding.from_embedding(torch.nn.Embedding(48, 64))(torch.tensor([[3, 5]])).shape
    torch.Size([1, 2, 64])
    """

    weight_int8: Tensor
    weight_scale: Tensor


class Int8Experts(Int8, CompressedExperts):
    """Fused experts in int8."""

    gate_up_int8: Tensor
    gate_up_scale: Tensor
    down_int8: Tensor
    down_scale: Tensor
