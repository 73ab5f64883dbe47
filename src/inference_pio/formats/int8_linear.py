"""A linear layer that holds its weight as int8 codes, one scale an output row."""

from __future__ import annotations

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from inference_pio.errors import InvalidModel
from inference_pio.formats.int8_module import Int8Module
from inference_pio.kernels.int8 import dequantize_rows, int8_linear, quantize_rows


class Int8Linear(Int8Module):
    """`x` [..., in_features] -> [..., out_features] in the dtype of `x`; the bias is the original's own Parameter.

    >>> layer = Int8Linear.from_linear(nn.Linear(64, 48))
    >>> layer
    Int8Linear(in_features=64, out_features=48, bias=True)
    >>> layer(torch.zeros(2, 5, 64)).shape
    torch.Size([2, 5, 48])
    """

    original_weights = ("weight",)
    weight_int8: torch.Tensor
    weight_scale: torch.Tensor

    def __init__(self, weight_int8: torch.Tensor, weight_scale: torch.Tensor, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight_int8.shape
        self.register_buffer("weight_int8", weight_int8)
        self.register_buffer("weight_scale", weight_scale)
        self.register_parameter("bias", bias)

    @classmethod
    def from_linear(cls, linear: nn.Module) -> Int8Linear:
        """The int8 form of an `nn.Linear` or of transformers' `Conv1D`, which keeps its weight as [in, out].

        On the meta device, a layer of the right shapes and no values. Raises InvalidModel for other modules.
        """
        if not isinstance(linear, nn.Linear | Conv1D):
            raise InvalidModel(f"{type(linear).__name__} has no int8 form: an nn.Linear or a Conv1D is needed.")
        weight = linear.weight.detach()
        layer = cls(*quantize_rows(weight if isinstance(linear, nn.Linear) else weight.t()), linear.bias)
        return layer.train(linear.training)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The weight that the codes stand for, [out_features, in_features]; exact in float32."""
        return dequantize_rows(self.weight_int8, self.weight_scale, dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        buffers = self._buffers  # a look-up here costs 0.1 us, by attribute 0.6; a token passes hundreds of layers
        codes, scale = buffers["weight_int8"], buffers["weight_scale"]
        return int8_linear(x, codes, scale, self._parameters["bias"])  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        bias = self.bias is not None
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={bias}"
