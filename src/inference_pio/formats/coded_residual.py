"""Linear layers of codes and of two small factors, which stand for what the codes miss where it counts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from inference_pio.errors import RefusedOnOptimized
from inference_pio.formats.compressed_linear import CompressedLinear
from inference_pio.formats.factored_linear import FactoredLinear


class CodedResidual(nn.Module):
    """`input` [..., in_features] -> [..., out_features]: by `codes`, and beside them by `factors`, added up; a bias is
    the factors'.
    """

    def __init__(self, codes: CompressedLinear, factors: FactoredLinear) -> None:
        super().__init__()
        self.in_features, self.out_features = factors.in_features, factors.out_features
        self.codes, self.factors = codes, factors

    def forward(self, input: Tensor) -> Tensor:  # the name by which a linear layer may be given it
        made: Tensor = self.codes(input) + self.factors(input)
        return made

    @torch.no_grad()
    def product(self) -> Tensor:
        """The one weight that all stands for, [out_features, in_features] in float32."""
        return self.codes.dequantize() + self.factors.product()

    def __getattr__(self, name: str) -> Any:
        if name == "weight":
            raise AttributeError(
                "CodedResidual has no 'weight': it is in codes and two factors. product() gives the weight that they "
                "stand for."
            )
        return super().__getattr__(name)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        if f"{prefix}weight" in state_dict:
            raise RefusedOnOptimized(
                f"{prefix}weight: this layer is in codes and two factors and cannot take an original weight. "
                "Call reset_model_optimizations(model) before loading original weights."
            )
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"
