"""A linear layer that holds its weight as codes with scales; what they are, a format says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from inference_pio.errors import InvalidModel
from inference_pio.formats.compressed_module import CompressedModule
from inference_pio.kernels.row_codes import inputs_of

GROUP = 128
"""How many weights share a scale, in formats that group them, unless another number is asked for."""


class CompressedLinear(CompressedModule):
    """`x` [..., in_features] -> [..., out_features] in the dtype of `x`; the bias is the original's own Parameter."""

    original_weights = ("weight",)

    def __init__(self, codes: Tensor, *beside: Tensor, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.out_features, self.in_features = codes.shape[0], inputs_of(codes, beside[0])
        self.hold("weight", codes, *beside)
        self.register_parameter("bias", bias)

    @classmethod
    def from_linear(
        cls, linear: nn.Module, group: int = GROUP, quantize: Callable[[Tensor], tuple[Tensor, ...]] | None = None
    ) -> Self:
        """The compressed form of an `nn.Linear` or of transformers' `Conv1D`, which keeps its weight as [in, out].

        `quantize` makes codes and scales of the weight [out, in], in the place of rounding to nearest. On the meta
        device, a layer of the right shapes and no values. Raises InvalidModel for other modules, and for a weight that
        the format cannot hold.
        """
        if not isinstance(linear, nn.Linear | Conv1D):
            raise InvalidModel(f"{type(linear).__name__} has no {cls.format} form: an nn.Linear or a Conv1D is needed.")
        weight = linear.weight.detach()
        weight = weight if isinstance(linear, nn.Linear) else weight.t()
        of_it = None if weight.is_meta else cls.why_not_module(linear)  # a skeleton's dtype may be another
        if reason := cls.why_not(weight.shape[1], group) or of_it:
            raise InvalidModel(f"{type(linear).__name__} has no {cls.format} form: {reason}.")
        layer = cls(*(quantize(weight) if quantize else cls.quantize(weight, group)), bias=linear.bias)
        return layer.train(linear.training)

    def read_table_of(self, owner: CompressedModule) -> None:
        """Hold no codes and ask another module for its own, which stays no child: a walk would come to it twice."""
        self._buffers.clear()
        self.__dict__["table_of"] = owner

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight that the codes stand for, [out_features, in_features]; exact in float32."""
        return self.dequantized(*self.held("weight"), dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.multiply(x, *self.held("weight"), bias=self._parameters["bias"])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        if self.table_of is not None:  # moved alone it takes the table along, as a tied Parameter would be
            self.table_of._apply(fn, recurse)
        return self

    def extra_repr(self) -> str:
        group = f", group={self.in_features // self.held('weight')[1].shape[0]}" if self.grouped else ""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}{group}"
