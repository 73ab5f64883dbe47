"""exponent12: bfloat16 weights in 12 bits, every bit of which comes back, and with them every bit of the answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from inference_pio.formats.compressed_experts import CompressedExperts
from inference_pio.formats.compressed_linear import CompressedLinear
from inference_pio.formats.weight_format import WeightFormat
from inference_pio.kernels.exponent12 import (
    COLUMNS,
    MOST_ELEMENTS,
    Packed,
    exponent12_linear,
    listed_share,
    pack,
    unpack,
    unpack_one,
)

MOST_LISTED = 1 / 64
"""A larger share of listed weights would take more than 0.75 bits a weight."""


class Exponent12(WeightFormat):
    """Buffers `*_exponent12` [..., N, K], and those of `kernels.exponent12.Packed` beside them."""

    format = "exponent12"
    told = "exponent12 codes, with exponents as indices and a list of those that have none"
    beside = Packed._fields[1:]
    sized_by_data = ("places", "values")
    exact = True

    def held(self: Any, name: str) -> tuple[Tensor, ...]:
        """Codes of one weight and all that stands beside them."""
        return tuple(self._buffers[f"{name}_{part}"] for part in (self.format, *self.beside))

    @staticmethod
    def quantize(weight: Tensor, group: int) -> tuple[Tensor, ...]:
        return pack(weight)

    @staticmethod
    def quantize_with_gram(weight: Tensor, gram: Tensor, rows: Sequence[int], group: int) -> tuple[Tensor, Tensor]:
        raise NotImplementedError("weights that are held exactly are not rounded")

    @staticmethod
    def dequantized(*given: Any) -> Tensor:
        *held, dtype = given
        return unpack(Packed(*held), dtype)

    @staticmethod
    def product(x: Tensor, *given: Any) -> Tensor:
        bias = given[-1] if len(given) > len(Packed._fields) else None
        return exponent12_linear(x, Packed(*given[: len(Packed._fields)]), bias)

    @staticmethod
    def backend(device: torch.device, dtype: torch.dtype) -> str:
        return "dequantize"

    @classmethod
    def cost(cls, device: torch.device, dtype: torch.dtype) -> str | None:
        read = (
            ", but in decoding steps of one or two rows, which read codes as they are" if device.type == "cuda" else ""
        )
        return f"{cls.format} weights are made anew at each product here{read}: memory is saved, time is not."

    @classmethod
    def why_not(cls, columns: int, group: int) -> str | None:
        return None if columns % COLUMNS == 0 else f"its {columns} inputs are no multiple of {COLUMNS}"

    @classmethod
    def why_not_module(cls, module: nn.Module) -> str | None:
        weights = [parameter for parameter in module.parameters(recurse=False) if parameter.dim() > 1]
        for weight in weights:
            if weight.dtype is not torch.bfloat16:
                return f"its weights are {str(weight.dtype).removeprefix('torch.')}: exponent12 is for bfloat16"
            if weight.shape[-1] * weight.shape[-2] > MOST_ELEMENTS:
                return f"it has more than {MOST_ELEMENTS} weights in a matrix"
        if not isinstance(module, nn.Linear) and any(weight.dim() == 2 for weight in weights):
            return f"a {type(module).__name__} multiplies in another order than exponent12 could: bits would differ"
        return _why_not_listed([weight for weight in weights if not weight.is_meta])


def _why_not_listed(weights: Sequence[Tensor]) -> str | None:
    listed = sum(listed_share(weight) * weight.numel() for weight in weights)
    share = listed / max(1, sum(weight.numel() for weight in weights))
    if share <= MOST_LISTED:
        return None
    return f"{share:.1%} of its weights have exponents below their row's 15 largest, and {MOST_LISTED:.1%} is the most"


class Exponent12Linear(Exponent12, CompressedLinear):
    """A linear layer in exponent12.

    >>> layer = Exponent12Linear.from_linear(nn.Linear(64, 48, dtype=torch.bfloat16))
    >>> layer
    Exponent12Linear(in_features=64, out_features=48, bias=True)
    >>> layer(torch.zeros(2, 5, 64, dtype=torch.bfloat16)).shape
    torch.Size([2, 5, 48])
    """

    weight_exponent12: Tensor
    weight_indices: Tensor
    weight_lowest: Tensor
    weight_listed_rows: Tensor
    weight_starts: Tensor
    weight_places: Tensor
    weight_values: Tensor


class Exponent12Experts(Exponent12, CompressedExperts):
    """Fused experts in exponent12: the library's own forward, on the weights of the experts that are hit."""

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        made = self._original(torch.unique(top_k_index).tolist(), hidden_states.dtype)
        found: Tensor = made.forward(hidden_states, top_k_index, top_k_weights)
        return found

    def takes_two_launches(self, device: torch.device, dtype: torch.dtype) -> bool:
        return False

    def _original(self, hit: Sequence[int], dtype: torch.dtype) -> Any:
        """A module of the class that this was made from, with its weights where an expert is hit, and zeros elsewhere.

        The library adds experts up in one order or another, as its configuration says: only its own code does likewise.
        """
        twin = self.experts_class.__new__(self.experts_class)
        weights = {f"{name}_proj": self._weights(Packed(*self.held(name)), hit, dtype) for name in ("gate_up", "down")}
        twin.__dict__.update({**self.__dict__, "_buffers": {}, "_parameters": weights})
        return twin

    @staticmethod
    def _weights(packed: Packed, hit: Sequence[int], dtype: torch.dtype) -> Tensor:
        weights = torch.zeros(packed.codes.shape, dtype=dtype, device=packed.codes.device)
        for expert in hit:
            if expert < len(weights):  # one beyond the last lives elsewhere
                weights[expert] = unpack_one(packed, expert)
        return weights
