"""`attention`: layers lose the attention without which the model says nearly the same; their MLPs stay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from inference_pio.anatomy.removable_layers import StackLayer
from inference_pio.calibration.token_fits import token_fits
from inference_pio.surgery.edit import Places
from inference_pio.surgery.parameters import SurgeryParameters
from inference_pio.surgery.removal import RemovalEdit
from inference_pio.surgery.text import SurgeryText
from inference_pio.undo.journal import Journal


class NoAttention(nn.Module):
    """Keeps nothing in the cache, and adds to the stream what `instead` makes of each token, or nothing."""

    def __init__(self, instead: nn.Linear | None = None) -> None:
        super().__init__()
        self.instead = instead

    def forward(self, hidden_states: Tensor, *rest: Any, **named: Any) -> tuple[Tensor, None]:
        return torch.zeros_like(hidden_states) if self.instead is None else self.instead(hidden_states), None


class Attention(RemovalEdit):
    """Layers keep their numbers: the cache's entry of such a layer stays empty."""

    name = "attention"

    def __init__(self, asked: SurgeryParameters) -> None:
        super().__init__(asked)
        self._fitted: dict[str, nn.Module] = {}

    def part(self, layer: StackLayer) -> str:
        return layer.attention_path

    def instead(self, model: nn.Module, text: SurgeryText, parts: Sequence[str]) -> dict[str, nn.Module]:
        fits = token_fits(model, text.strayed, parts) if self.asked.refit else {}
        self._fitted = {part: _linear(model.get_submodule(part), *fit) for part, fit in fits.items()}
        return self._fitted

    def apply(self, journal: Journal, model: nn.Module, places: Places) -> list[str]:
        fitted, self._fitted = self._fitted, {}
        behind = self.put_refitted(journal, model)
        for path, layer in places.items():
            part = f"{path}.{layer['attention']}"
            attention, width = model.get_submodule(part), layer["width"]
            other: Any = fitted.get(part)
            if other is None and self.asked.refit:  # its numbers are foretold, or come from a file
                other = _linear(attention, torch.empty(width, width), torch.empty(width))
            journal.replace(attention, NoAttention(other))
        left = ", a linear layer in its place" if self.asked.refit else ""
        return [f"the attention of {len(places)} layers is gone{left}: {', '.join(places)}{behind}."]


def _linear(attention: nn.Module, weight: Tensor, bias: Tensor) -> nn.Linear:
    """A linear layer of these numbers, as an attention holds its own."""
    like = next(attention.parameters())
    made = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    for name, values in (("weight", weight), ("bias", bias)):
        setattr(made, name, nn.Parameter(values.to(like.device, like.dtype), requires_grad=like.requires_grad))
    return made
