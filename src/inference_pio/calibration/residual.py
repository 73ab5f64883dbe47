"""Codes that stand beside two factors: what of a weight they hold, and what they leave for the factors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from inference_pio.anatomy.side_by_side import SideBySide, weight_of
from inference_pio.formats.compressed_linear import CompressedLinear
from inference_pio.formats.int4 import GROUPS
from inference_pio.formats.known import format_named

ALIGN = 16
"""Ranks beside codes are small: multiples of 16 fill matrix units as well."""


@dataclass(frozen=True)
class Residual:
    """Codes in one format, in the largest groups that divide a layer's inputs where it has groups.

    >>> residual = Residual("int4")
    >>> residual.group(96), residual.why_not(100)
    (32, 'groups of 32 do not divide its 100 inputs (none of 32, 64, 128 does)')
    """

    format: str

    def group(self, inputs: int) -> int:
        """How many weights share a grid."""
        return max([size for size in GROUPS if inputs % size == 0], default=min(GROUPS))

    def why_not(self, inputs: int) -> str | None:
        """Why layers of so many inputs have no such codes, and the way out; or None."""
        return format_named(self.format).linear.why_not(inputs, self.group(inputs))

    def codes(self, model: nn.Module, one: SideBySide) -> tuple[CompressedLinear, ...]:
        """Each layer's weight rounded to the nearest; biases stay with the factors."""
        kind, group = format_named(self.format).linear, self.group(one.inputs)
        made = [kind.from_linear(model.get_submodule(path), group) for path in one.paths]
        for layer in made:
            layer.register_parameter("bias", None)
        return tuple(made)

    def numbers(self, model: nn.Module, one: SideBySide) -> float:
        """As how many numbers of its weights all its codes count, with what stands beside them, by their bytes."""
        kind, group = format_named(self.format).linear, self.group(one.inputs)
        with torch.device("meta"):
            layers = [nn.Linear(one.inputs, rows, bias=False) for rows in one.outputs]
        nbytes = sum(buffer.nbytes for layer in layers for buffer in kind.from_linear(layer, group).buffers())
        return nbytes / weight_of(model.get_submodule(one.name)).element_size()

    def left(self, model: nn.Module, one: SideBySide) -> Tensor:
        """What the codes leave of the weights, one above the other, in float32."""
        return one.weight(model).float() - held(self.codes(model, one))


def held(codes: Sequence[CompressedLinear]) -> Tensor:
    """The weights that codes stand for, one above the other, in float32."""
    return torch.cat([layer.dequantize() for layer in codes])
