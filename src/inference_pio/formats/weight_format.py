"""What a format of weights is: codes and scales made from weights, what they stand for, and their product."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor


class WeightFormat:
    """One format; a file of this package mixes it into a linear layer and into fused experts.

    Weights are [N, K] or, of many experts, [E, N, K]; every method takes both, `product` the first alone.
    """

    format: ClassVar[str]
    told: ClassVar[str]
    """What a layer holds instead of its weights, in words."""
    grouped: ClassVar[bool] = False
    """Whether weights share scales in groups along their inputs; `group` is then how many, else it says nothing."""

    @staticmethod
    def quantize(weight: Tensor, group: int, /) -> tuple[Tensor, Tensor]:
        """Codes and scales of weights, each rounded to the nearest; on the meta device, shapes without values."""
        raise NotImplementedError

    @staticmethod
    def quantize_with_gram(weight: Tensor, gram: Tensor, rows: Sequence[int], group: int, /) -> tuple[Tensor, Tensor]:
        """The same for matrices [B, N, K], so that products with inputs of these Gram matrices [B, K, K] change little.

        Each is the sum over `rows[b]` inputs. Nothing that is given is written to.
        """
        raise NotImplementedError

    @staticmethod
    def dequantized(codes: Tensor, scale: Tensor, dtype: torch.dtype, /) -> Tensor:
        """The weights that codes and scales stand for."""
        raise NotImplementedError

    @staticmethod
    def product(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None = None, /) -> Tensor:
        """`x` [..., K] times what codes and scales stand for, [..., N]."""
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
        if cls.backend(device, dtype) == "dequantize":
            return f"{cls.format} weights are made anew at each product here: memory is saved, time is not."
        return None

    @classmethod
    def why_not(cls, columns: int, group: int) -> str | None:
        """Why weights of so many inputs have no such form, and the way out; None where they have one."""
        return None
