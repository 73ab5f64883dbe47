"""A convolution in three: into fewer channels, over the taps, and out of them again."""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from torch import Tensor, nn

from inference_pio.errors import RefusedOnOptimized
from inference_pio.kernels.tucker import tucker

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class FactoredConv(nn.Module):
    """`input` [B, in_channels, ...] -> [B, out_channels, ...]; strides and padding are the core's, a bias the last's.

    It tells them as the convolution did: models reckon with them from beside it.
    """

    def __init__(self, into: nn.Module, core: nn.Module, out_of: nn.Module) -> None:
        super().__init__()
        self.into, self.core, self.out_of = into, core, out_of
        self.in_channels, self.out_channels = into.in_channels, out_of.out_channels
        self.kernel_size, self.stride, self.padding = core.kernel_size, core.stride, core.padding
        self.dilation, self.groups = core.dilation, core.groups

    def forward(self, input: Tensor) -> Tensor:  # the name by which a convolution may be given it
        made: Tensor = self.out_of(self.core(self.into(input)))
        return made

    @classmethod
    def from_conv(cls, conv: Conv, channels: tuple[int, int], values: bool = True) -> Self:
        """A convolution with so many channels out of its core and into it; without `values`, of the right shapes."""
        kernel, (outputs, inputs) = conv.weight.detach(), channels
        if values and not kernel.is_meta:
            found = tucker(kernel, outputs, inputs)
            parts = found.into, found.core, found.out_of
        else:
            parts = (
                kernel.new_empty(inputs, kernel.shape[1]), kernel.new_empty(outputs, inputs, *kernel.shape[2:]),
                kernel.new_empty(kernel.shape[0], outputs),
            )  # fmt: skip
        ones = [1] * (kernel.dim() - 2)
        into, core, out_of = (part.to(kernel.dtype) for part in parts)
        over: dict[str, Any] = {"stride": conv.stride, "padding": conv.padding, "dilation": conv.dilation}
        return cls(
            _conv(conv, into.reshape(*into.shape, *ones)), _conv(conv, core, **over),
            _conv(conv, out_of.reshape(*out_of.shape, *ones), conv._parameters["bias"]),
        )  # fmt: skip

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        if f"{prefix}weight" in state_dict:
            raise RefusedOnOptimized(
                f"{prefix}weight: this convolution is in three parts and cannot take an original weight. "
                "Call reset_model_optimizations(model) before loading original weights."
            )
        super()._load_from_state_dict(state_dict, prefix, *rest)


def core_channels(conv: Conv, ratio: float, align: int) -> tuple[int, int] | None:
    """The channels out of a core and into it, alike in their share, with which `ratio` of a kernel's numbers goes.

    >>> core_channels(nn.Conv2d(64, 64, 3), 0.5, 8), core_channels(nn.Conv2d(4, 4, 3), 0.5, 8)
    ((32, 32), None)
    """
    outputs, inputs, taps = conv.out_channels, conv.in_channels, math.prod(conv.kernel_size)
    least = align / min(outputs, inputs)
    # o a O + i a I + a² O I taps = (1 - ratio) O I taps, solved for the share a of the channels
    beside = (outputs**2 + inputs**2) / (outputs * inputs * taps)
    share = (math.sqrt(beside**2 + 4 * (1 - ratio)) - beside) / 2
    if share < least:
        return None
    return tuple(max(align, int(share * side + 1e-9) // align * align) for side in (outputs, inputs))  # type: ignore[return-value]


def why_no_core(conv: nn.Module) -> str | None:
    """Why a convolution stays in one part, or None.

    >>> why_no_core(nn.Conv2d(8, 8, 1))
    'its kernel has one tap, so there is nothing between two changes of channels'
    """
    if type(conv) not in CONVS or "forward" in conv.__dict__ or hasattr(conv, "parametrizations"):
        return "its forward or its weight is overridden"
    if conv.groups != 1:
        return f"its channels come in {conv.groups} groups"
    if conv.padding_mode != "zeros":
        return f"it pads with {conv.padding_mode} values"
    if math.prod(conv.kernel_size) == 1:  # type: ignore[arg-type]
        return "its kernel has one tap, so there is nothing between two changes of channels"
    return None


def _conv(like: Conv, weight: Tensor, bias: nn.Parameter | None = None, **over: Any) -> nn.Module:
    with torch.device("meta"):
        made = type(like)(weight.shape[1], weight.shape[0], weight.shape[2:], bias=False, **over)  # type: ignore[arg-type]
    made.weight = nn.Parameter(weight.contiguous(), requires_grad=like.weight.requires_grad)
    made.register_parameter("bias", bias)
    return made
