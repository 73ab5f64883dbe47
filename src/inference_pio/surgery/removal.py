"""What the removal of layers and of their attentions share: candidates, the choice by data, and what is told of it."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from inference_pio.anatomy.chosen import Chosen
from inference_pio.anatomy.removable_layers import StackLayer, stack_layers
from inference_pio.anatomy.roles import hidden_width
from inference_pio.calibration.removal import cheapest, influences, passed_over, to_judge
from inference_pio.contract.site import Site
from inference_pio.errors import InvalidModel
from inference_pio.surgery.edit import Edit, Places
from inference_pio.surgery.text import SurgeryText


class RemovalEdit(Edit):
    """Takes something out of the layers of a stack; places are the paths of the layers."""

    exactness = "approximate"
    learns = True

    @abstractmethod
    def part(self, layer: StackLayer) -> str:
        """The path of what goes."""

    def instead(self, model: nn.Module, text: SurgeryText, parts: Sequence[str]) -> dict[str, nn.Module]:
        """What takes the place of parts, by their paths."""
        return {}

    def why_not(self, model: nn.Module, layer: StackLayer) -> str | None:
        """Why nothing goes from a layer that may spare something, or None."""
        return None

    def sites(self, model: nn.Module) -> Iterable[Site]:
        for layer in _layers(model):
            nbytes = _bytes(model.get_submodule(self.part(layer)))
            yield Site(layer.path, "layer", skip=self._why_kept(model, layer), nbytes=nbytes)

    def decide(self, model: nn.Module, paths: Iterable[str], others: Mapping[str, Places]) -> Places:
        """Foretold are the last layers: which go is told by data."""
        meant = set(paths) - _gone(others)
        layers = _layers(model)
        return self._places(
            model, [layer for layer in layers if layer.path in meant][-self.asked.remove :], len(layers)
        )

    def learn(
        self, model: nn.Module, places: Places, text: SurgeryText, others: Mapping[str, Places]
    ) -> tuple[Places, dict[str, Any]] | None:
        gone = _gone(others)
        layers = {layer.path: layer for layer in _layers(model)}
        free = [layer for layer in layers.values() if layer.path not in gone and self._why_kept(model, layer) is None]
        parts = {self.part(layer): layer.path for layer in free}
        whole = [path for path in parts if path in layers]
        influence = influences(
            model, text.learned, whole, {part: path for part, path in parts.items() if part not in whole}
        )
        before, judge = [path for path in gone if path in layers], text.held_out  # answers of the whole model
        judged = to_judge(influence, self.asked.remove)
        instead = self.instead(model, text, judged)

        def divergence(taken: Sequence[str]) -> float:
            blocks = [*before, *(part for part in taken if part in layers)]
            with passed_over(model, blocks, {part: instead.get(part) for part in taken if part not in layers}):
                return judge.divergence(model)

        removal = cheapest(judged, divergence, self.asked.remove, self.asked.max_kl)
        if not all(map(math.isfinite, (*removal.divergences.values(), removal.together))):
            raise InvalidModel(
                f"what this model says of {text.source.name} holds NaN or infinity, with all of its layers or without "
                f"one, so {self.name!r} cannot be judged: check the checkpoint. Nothing was touched."
            )
        told = {
            "held_out_divergence": removal.together, "divergences": removal.divergences, "influences": influence,
            "source": text.source.name, "sha256": text.source.digest,
        }  # fmt: skip
        return self._places(model, [layers[parts[part]] for part in removal.taken], len(layers)), told

    def _why_kept(self, model: nn.Module, layer: StackLayer) -> str | None:
        reason = Chosen(self.asked.targets, self.asked.skip).why_not(layer.path, "unknown")
        return reason or layer.kept or self.why_not(model, layer)

    def _places(self, model: nn.Module, layers: Sequence[StackLayer], count: int) -> Places:
        """What `apply` needs to know of each, on a model that may have fewer layers by then."""
        known = {"of": count, "width": hidden_width(model)}
        return {layer.path: {**known, "attention": layer.attention} for layer in layers}


def _gone(others: Mapping[str, Places]) -> set[str]:
    """Layers from which another edit takes something already."""
    return {path for found in others.values() for path in found}


def _layers(model: nn.Module) -> list[StackLayer]:
    found = stack_layers(model)
    return [] if isinstance(found, str) else found


def _bytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())
