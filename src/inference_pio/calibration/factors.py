"""The two factors of layers that are given one input, and the layers that are made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from inference_pio.anatomy.side_by_side import SideBySide
from inference_pio.calibration.ranks import WHOLE
from inference_pio.calibration.residual import Residual
from inference_pio.formats.coded_residual import CodedResidual
from inference_pio.formats.factored_linear import FactoredLinear, IntoFew
from inference_pio.kernels.low_rank import Spectrum, pivoted


@dataclass(frozen=True)
class Factors:
    """What layers of one input become: `into` [rank, inputs] (or, with an `order`, [rank, inputs - rank]) is theirs
    together, `out_of` [sum of outputs, rank] lies one above the other.
    """

    into: Tensor
    out_of: Tensor
    order: Tensor | None

    @property
    def rank(self) -> int:
        return self.into.shape[0]


def factors_to_come(
    model: nn.Module, groups: Sequence[SideBySide], ranks: Mapping[str, int], pivots: bool
) -> dict[str, Factors]:  # fmt: skip
    """Factors of the right shapes, to be filled."""
    found = {}
    for one in groups:
        if (rank := ranks[one.name]) != WHOLE:
            like = one.weight(model)
            into = like.new_empty(rank, one.inputs - (rank if pivots else 0))
            order = torch.arange(one.inputs, dtype=torch.int32, device=like.device) if pivots else None
            found[one.name] = Factors(into, like.new_empty(len(like), rank), order)
    return found


def factors_at(parts: Spectrum, rank: int, pivots: bool, like: Tensor) -> Factors:
    """The two factors of a rank, rounded once to the dtype of `like`."""
    left, right = parts.factors(rank)
    order = None
    if pivots:
        order, left, right = pivoted(left, right)
        order = order.to(torch.int32)
    return Factors(right.to(like.dtype).contiguous(), left.to(like.dtype).contiguous(), order)


def layers_of(
    model: nn.Module, groups: Sequence[SideBySide], factors: Mapping[str, Factors], residual: Residual | None = None
) -> dict[str, FactoredLinear | CodedResidual]:
    """The layers that take the places of the model's, by path; biases are the very Parameters that they were. With a
    `residual`, its codes stand beside the factors.
    """
    made: dict[str, FactoredLinear | CodedResidual] = {}
    for one in groups:
        if (given := factors.get(one.name)) is None:
            continue
        modules = [model.get_submodule(path) for path in one.paths]
        learns = any(module.weight.requires_grad for module in modules)  # type: ignore[union-attr, operator]
        into = IntoFew(_linear(given.into, learns), given.order, len(modules))
        codes = residual.codes(model, one) if residual else [None] * len(modules)
        parts = torch.split(given.out_of, list(one.outputs))
        for path, module, part, coded in zip(one.paths, modules, parts, codes, strict=True):
            bias: Any = module.bias
            layer = FactoredLinear(into, _linear(part, learns, bias))
            made[path] = CodedResidual(coded, layer) if coded is not None else layer
    return made


def _linear(weight: Tensor, learns: bool, bias: nn.Parameter | None = None) -> nn.Linear:
    with torch.device("meta"):
        made = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    made.weight = nn.Parameter(weight.clone() if weight._is_view() else weight, requires_grad=learns)
    made.register_parameter("bias", bias)
    return made
