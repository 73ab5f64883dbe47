"""The inner channels of gated MLPs and of fused experts: what holds them, and how wide it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from inference_pio.anatomy.decoder_mlp import DOWN, GATE, UP, mlp_parts
from inference_pio.anatomy.parts import is_experts, vision_paths, within
from inference_pio.anatomy.prunable import ReadUnits, Weights, said_by
from inference_pio.anatomy.walk import is_linear

MLP, EXPERT_WIDTH = "mlp", "expert_width"
GATE_UP_OF_EXPERTS, DOWN_OF_EXPERTS = "gate_up_proj", "down_proj"
WIDTH_NAMES = ("intermediate_size", "intermediate_dim", "moe_intermediate_size", "shared_expert_intermediate_size")
"""Under which names modules and configurations tell their inner width."""


@dataclass(frozen=True)
class InnerChannels(ReadUnits):
    """A module whose `width` inner channels may go: a gated MLP, or all experts of a mixture, of which each has its
    own.
    """

    told_by: ClassVar[tuple[str, ...]] = WIDTH_NAMES

    @property
    def stacked(self) -> bool:
        return self.unit == EXPERT_WIDTH

    @property
    def down(self) -> str:
        return self.path if self.stacked else f"{self.path}.{DOWN}"

    @property
    def down_name(self) -> str:
        return DOWN_OF_EXPERTS if self.stacked else f"{DOWN}.weight"

    @property
    def weights(self) -> dict[str, Any]:
        names = (
            [GATE_UP_OF_EXPERTS, DOWN_OF_EXPERTS] if self.stacked else [f"{name}.weight" for name in (GATE, UP, DOWN)]
        )
        return {name: self.module.get_parameter(name) for name in names}

    def told(self, config: object, width: int) -> dict[str, int]:
        return said_by(config, WIDTH_NAMES, self.width, width)

    def narrowed(self, kept: Tensor, down: Tensor) -> Weights:
        weights = {name: weight.detach() for name, weight in self.weights.items()}
        if not self.stacked:
            first = {name: weight[kept[0]] for name, weight in weights.items() if name != self.down_name}
            return {**first, self.down_name: down[0]}
        both = torch.cat([kept, kept + self.width], 1)
        gate_up = weights[GATE_UP_OF_EXPERTS]
        return {
            GATE_UP_OF_EXPERTS: gate_up.gather(1, both[..., None].expand(-1, -1, gate_up.shape[2])),
            DOWN_OF_EXPERTS: down,
        }


def inner_channels(model: nn.Module) -> Iterator[InnerChannels | tuple[str, str]]:
    """Every MLP and every module of fused experts; a path and a reason in the place of those of other kinds."""
    towers = vision_paths(model)
    for path, module in list(model.named_modules()):
        if is_experts(module):
            found = _of_experts(path, module)
        elif {GATE, UP, DOWN} <= dict(module.named_children()).keys():
            found = _of_mlp(path, module)
        else:
            continue
        tower = any(within(path, one) for one in towers)
        yield (path, "the vision tower is kept") if tower and isinstance(found, InnerChannels) else found


def _of_mlp(path: str, module: nn.Module) -> InnerChannels | tuple[str, str]:
    parts = mlp_parts(module)
    if isinstance(parts, str):
        return path, parts
    layers = [module.get_submodule(name) for name in (GATE, UP, DOWN)]
    if not all(is_linear(layer) and isinstance(layer, nn.Linear) for layer in layers):
        return path, "its layers are stored or computed in another way than plain linear layers"
    if any(layer.bias is not None for layer in layers):
        return path, "its layers have biases"
    return InnerChannels(path, module, MLP, layers[2].in_features)  # type: ignore[arg-type]


def _of_experts(path: str, module: nn.Module) -> InnerChannels | tuple[str, str]:
    parameters = dict(module.named_parameters(recurse=False))
    if set(parameters) != {GATE_UP_OF_EXPERTS, DOWN_OF_EXPERTS} or not callable(getattr(module, "_apply_gate", None)):
        return path, f"its experts are held as {', '.join(sorted(parameters)) or 'codes'}, and in an order not known"
    gate_up, down = parameters[GATE_UP_OF_EXPERTS], parameters[DOWN_OF_EXPERTS]
    if gate_up.shape[1] != 2 * down.shape[2] or not getattr(module, "is_concatenated", True):
        return path, "gate and up of its experts do not lie one behind the other"
    return InnerChannels(path, module, EXPERT_WIDTH, down.shape[2])
