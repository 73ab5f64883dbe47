"""What a format of weights is: codes made from weights, what stands beside them, what both stand for, their product."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class WeightFormat:
    """One format; a file of this package mixes it into a linear layer and into fused experts.

    Weights are [N, K] or, of many experts, [E, N, K]; every method takes both, `product` the first alone.
    """

    format: ClassVar[str]
    told: ClassVar[str]
    """What a layer holds instead of its weights, in words."""
    grouped: ClassVar[bool] = False
    """Whether weights share scales in groups along their inputs; `group` is then how many, else it says nothing."""
    beside: ClassVar[tuple[str, ...]] = ("scale",)
    """The tensors that stand beside codes, in order."""
    sized_by_data: ClassVar[tuple[str, ...]] = ()
    """Those of them that hold as much as the weights ask for, and nothing on the meta device."""
    activations: ClassVar[str | None] = None
    """What activations may become beside these weights, token by token, where a prompt is long enough."""
    row_by_row: ClassVar[bool] = False
    """Whether codes and what stands beside them have a row for each output, in order: those of several layers that read
    one input can then lie side by side and be one product."""
    exact: ClassVar[bool] = False
    """Whether every bit of the weights comes back."""

    @staticmethod
    def quantize(weight: Tensor, group: int, /) -> tuple[Tensor, ...]:
        """Codes of weights, each rounded to the nearest, and what stands beside; on the meta device without values."""
        raise NotImplementedError

    @staticmethod
    def quantize_with_gram(weight: Tensor, gram: Tensor, rows: Sequence[int], group: int, /) -> tuple[Tensor, Tensor]:
        """The same for matrices [B, N, K], so that products with inputs of these Gram matrices [B, K, K] change little.

        Each is the sum over `rows[b]` inputs. Nothing that is given is written to.
        """
        raise NotImplementedError

    @staticmethod
    def dequantized(*given: Any, **named: Any) -> Tensor:
        """Given codes, what stands beside them, and a dtype: the weights that they stand for."""
        raise NotImplementedError

    @staticmethod
    def product(*given: Any, **named: Any) -> Tensor:
        """Given `x` [..., K], codes, what stands beside them, and perhaps a bias: the product [..., N]."""
        raise NotImplementedError

    @staticmethod
    def backend(device: torch.device, dtype: torch.dtype, /) -> str:
        """What computes `product` there."""
        raise NotImplementedError

    @staticmethod
    def settled(codes: Tensor, /) -> Tensor:
        """Codes in the layout that the device reads which they are on."""
        return codes

    @staticmethod
    def portable(codes: Tensor, /) -> Tensor:
        """Codes in the layout that is the same on every machine: what files hold."""
        return codes

    @classmethod
    def cost(cls, device: torch.device, dtype: torch.dtype) -> str | None:
        """What the format costs there, in words; None where it does not."""
        backend = cls.backend(device, dtype)
        if backend == "dequantize":
            return f"{cls.format} weights are made anew at each product here: memory is saved, time is not."
        if backend == "triton":
            return f"{cls.format} codes are multiplied as they are by up to 8 tokens; for more, weights are made anew."
        return None

    @classmethod
    def why_not(cls, columns: int, group: int) -> str | None:
        """Why weights of so many inputs have no such form, and the way out; None where they have one."""
        return None

    @classmethod
    def why_not_module(cls, module: nn.Module) -> str | None:
        """Why a module has no such form for what it is or holds; None where it has one. Reads values where they are."""
        return None
