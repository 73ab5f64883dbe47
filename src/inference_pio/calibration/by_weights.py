"""Units that go by the size of their weights alone: without a text, and without a refit to make up for them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from inference_pio.anatomy.mlp_channels import GATE_UP_OF_EXPERTS, InnerChannels
from inference_pio.anatomy.prunable import Prunable, ReadUnits
from inference_pio.anatomy.routed_experts import RoutedExperts
from inference_pio.calibration.narrowed import UNIFORM, Candidate, Narrowed

BY_WEIGHTS = {"name": "no text: the size of weights"}


@torch.no_grad()
def narrow_by_weights(units: Mapping[str, Prunable], widths: Mapping[str, int]) -> Narrowed:
    """Keep `widths[path]` units of each module, the largest. Nothing of the model is edited."""
    taken = Candidate()
    for path, one in units.items():
        if isinstance(one, ReadUnits):
            kept = _sizes(one).topk(widths[path], dim=1).indices.sort(1).values
            columns = one.columns(kept)[:, None].expand(-1, one.down_weights.shape[1], -1)
            taken.weights[path] = one.narrowed(kept, one.down_weights.gather(2, columns))
            taken.kept[path] = kept if one.stacked else kept[0]
        elif isinstance(one, RoutedExperts):
            size = one.weights[one.down].detach().double().square().sum((1, 2))
            taken.kept[path] = kept = size.topk(widths[path]).indices.sort().values
            taken.weights[path] = one.only(kept)
    return Narrowed(taken, UNIFORM, {}, {}, BY_WEIGHTS)


def _sizes(one: ReadUnits) -> Tensor:
    """Of each unit [copies, width], the norm of the weights that read it, times those that make it in an MLP."""
    size = one.down_weights.double().square().sum(1).view(one.copies, -1, one.block).sum(2).sqrt()
    if isinstance(one, InnerChannels):
        for name, weight in one.weights.items():
            if name != one.down_name:
                norms = weight.detach().double().norm(dim=-1)
                size *= norms.view(one.copies, 2, -1).prod(1) if name == GATE_UP_OF_EXPERTS else norms
    return size
