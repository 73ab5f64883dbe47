"""The decoder's own list of layers: those that are called one after another, with the attention in them."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from inference_pio.anatomy.parts import runs_attention, vision_paths, within

FEWEST = 2
"""Layers of one class that make a decoder's list."""


def listed_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module, bool]]:
    """The layers of every list that are alike and hold attention: path, module, whether it is a vision tower's.

    >>> list(listed_layers(nn.Sequential(nn.Linear(2, 2))))
    []
    """
    towers = vision_paths(model)
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) >= FEWEST and len({type(one) for one in module}) == 1:
            for name, layer in module.named_children():
                if any(runs_attention(one) for one in layer.modules()):
                    place = f"{path}.{name}" if path else name
                    yield place, layer, any(within(place, tower) for tower in towers)
