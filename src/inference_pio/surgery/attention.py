"""`attention`: layers lose the attention without which the model says nearly the same; their MLPs stay."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from inference_pio.anatomy.removable_layers import StackLayer
from inference_pio.surgery.edit import Places
from inference_pio.surgery.removal import RemovalEdit
from inference_pio.undo.journal import Journal


class NoAttention(nn.Module):
    """Adds nothing to the stream and keeps nothing in the cache."""

    def forward(self, hidden_states: Tensor, *rest: Any, **named: Any) -> tuple[Tensor, None]:
        return torch.zeros_like(hidden_states), None


class Attention(RemovalEdit):
    """Layers keep their numbers: the cache's entry of such a layer stays empty."""

    name = "attention"

    def part(self, layer: StackLayer) -> str:
        return layer.attention_path

    def apply(self, journal: Journal, model: nn.Module, places: Places) -> list[str]:
        for path, layer in places.items():
            journal.replace(model.get_submodule(f"{path}.{layer['attention']}"), NoAttention())
        return [f"the attention of {len(places)} layers is gone: {', '.join(places)}."]
