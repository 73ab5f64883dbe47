"""`blocks`: whole layers go, those without which the model says nearly the same; numbers and configuration follow."""

from __future__ import annotations

from typing import Any

from torch import nn

from inference_pio.anatomy.fewer_layers import of_fewer_layers
from inference_pio.anatomy.removable_layers import StackLayer
from inference_pio.surgery.edit import Places
from inference_pio.surgery.removal import RemovalEdit
from inference_pio.undo.journal import Journal

LAYER_NUMBER = "layer_idx"
"""Under which name a module knows its layer's place in the cache."""


class Blocks(RemovalEdit):
    """A layer's place in the cache and in the configuration is that of a model that was built with fewer layers."""

    name = "blocks"

    def part(self, layer: StackLayer) -> str:
        return layer.path

    def why_not(self, model: nn.Module, layer: StackLayer) -> str | None:
        listed, stack = _around(model, layer.path)
        told = of_fewer_layers(stack.config, [number for number in range(len(listed)) if number != layer.number])
        return told if isinstance(told, str) else None

    def apply(self, journal: Journal, model: nn.Module, places: Places) -> list[str]:
        listed, stack = _around(model, next(iter(places)))
        before, behind = next(iter(places.values()))["of"], self.put_refitted(journal, model)
        if len(listed) == before:  # else a saved configuration told the fewer ones already
            gone = {path.rpartition(".")[2] for path in places}
            kept = [number for number in range(before) if str(number) not in gone]
            told: Any = of_fewer_layers(stack.config, kept)
            _renumber(journal, listed, kept)
            for name, value in told.items():
                journal.set(stack.config, name, value)
        return [f"{len(places)} of {before} layers are gone: {', '.join(places)}{behind}."]


def _renumber(journal: Journal, listed: nn.ModuleList, kept: list[int]) -> None:
    layers = [listed[number] for number in kept]
    journal.replace(listed, nn.ModuleList(layers))
    for number, (old, layer) in enumerate(zip(kept, layers, strict=True)):
        for module in layer.modules():
            if number != old and vars(module).get(LAYER_NUMBER) == old:
                journal.set(module, LAYER_NUMBER, number)


def _around(model: nn.Module, path: str) -> tuple[nn.ModuleList, Any]:
    """The list that a layer is in, and the stack that holds the list."""
    above = path.rpartition(".")[0]
    listed: Any = model.get_submodule(above)
    return listed, model.get_submodule(above.rpartition(".")[0])
