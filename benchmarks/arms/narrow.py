"""MLPs of fewer channels, of a model that bears it: what is to go is given nothing to say before the plain answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import inference_pio
from benchmarks.arms.decoder import Decoder
from benchmarks.arms.ours import EngineDecoder
from benchmarks.arms.room import Room
from inference_pio.anatomy.mlp_channels import MLP, InnerChannels, inner_channels

RATIO = 0.25


@torch.no_grad()
def of_fewer_channels(model: nn.Module) -> None:
    """A quarter of the channels of each MLP, by chance, adds nothing to its result; the others add more for it."""
    for number, one in enumerate(inner_channels(model)):
        if isinstance(one, InnerChannels) and one.unit == MLP:
            down: Any = one.weights[one.down_name]
            chance = torch.Generator(down.device).manual_seed(number)
            gone = torch.randperm(one.width, generator=chance, device=down.device)[: round(one.width * RATIO)]
            down.mul_((1 - RATIO) ** -0.5)
            down[:, gone] = 0


def prune(model: nn.Module, room: Room, level: str, *more: str) -> None:
    """`structured_pruning`, as much of each layer, by the size of weights; then `kernel_fusion` at a level."""
    asked: dict[str, Any] = {
        "pruning_ratio": RATIO, "units": [MLP], "allocation": "uniform", "calibration": "none",
        "align": 8 if room.smoke else 64,
    }  # fmt: skip
    given = {"structured_pruning": asked, "kernel_fusion": {"level": level}}
    manager = inference_pio.get_optimization_manager()
    manager.apply_optimizations(model, ["structured_pruning", *more, "kernel_fusion"], parameters=given)
    room.notes += [f"{one.name}: {note}" for one in manager.get_receipts(model)[:1] for note in one.notes]


def pruned(model: nn.Module, room: Room) -> Decoder:
    """Level graph over three quarters of the channels."""
    prune(model, room, "graph", "flash_attention")
    return EngineDecoder(model, room)


def pruned_forward(forward: Callable[[Any], Callable[[Tensor, int], Tensor]]) -> Any:
    """The forward of a prompt over three quarters of the channels, by fused elementwise kernels."""

    def make(model: nn.Module, room: Room) -> Callable[[Tensor, int], Tensor]:
        prune(model, room, "elementwise")
        return forward(model)

    return make
