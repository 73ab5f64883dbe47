"""`text_only`: the vision tower goes; what stands in its place explains itself when a picture comes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

import torch
from torch import nn

from inference_pio.anatomy.parts import vision_paths
from inference_pio.anatomy.roles import hidden_width
from inference_pio.contract.site import Site
from inference_pio.errors import RefusedOnOptimized
from inference_pio.surgery.edit import Edit, Places
from inference_pio.undo.journal import Journal


class NoTower(nn.Module):
    """In the place of a vision tower: asked for its dtype, it answers; given a picture, it tells why it sees none."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, *given: Any, **named: Any) -> NoReturn:
        raise RefusedOnOptimized(
            "this model was made text_only by model_surgery, so it sees no pictures: give it text alone, or take that "
            "back (remove_optimizations(model, ['model_surgery']))."
        )


class TextOnly(Edit):
    """Texts are computed as before, bit for bit."""

    name = "text_only"
    exactness = "traffic"

    def sites(self, model: nn.Module) -> Iterable[Site]:
        for path in vision_paths(model):
            if path and hidden_width(model):
                tower = model.get_submodule(path)
                yield Site(path, "vision", nbytes=sum(parameter.nbytes for parameter in tower.parameters()))

    def apply(self, journal: Journal, model: nn.Module, places: Places) -> list[str]:
        for path in places:
            tower = model.get_submodule(path)
            first = next(tower.parameters(), None)
            journal.replace(tower, NoTower(torch.float32 if first is None else first.dtype))
        return [f"the vision tower {', '.join(places)} is gone: pictures are refused."]
