"""What the removal of layers and of their attentions share: candidates, the choice by data, and what is told of it."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from torch import Tensor, nn

from inference_pio.anatomy.chosen import Chosen
from inference_pio.anatomy.parts import within
from inference_pio.anatomy.removable_layers import StackLayer, stack_layers
from inference_pio.anatomy.roles import hidden_width
from inference_pio.calibration.removal import Removal, cheapest, influences, passed_over, to_judge
from inference_pio.calibration.stood_in import stood_in
from inference_pio.calibration.stream_refit import refit_stream
from inference_pio.calibration.twins import twin_of
from inference_pio.contract.site import Site
from inference_pio.errors import InvalidModel
from inference_pio.surgery.edit import Edit, Places
from inference_pio.surgery.parameters import SurgeryParameters
from inference_pio.surgery.text import SurgeryText
from inference_pio.undo.journal import Journal

TRIED = 3
"""Parts that what lies behind is fitted again for, one after another; each takes two forwards a layer."""


class RemovalEdit(Edit):
    """Takes something out of the layers of a stack; places are the paths of the layers."""

    exactness = "approximate"
    learns = True

    def __init__(self, asked: SurgeryParameters) -> None:
        super().__init__(asked)
        self._text: SurgeryText | None = None

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

        def without(taken: Sequence[str]) -> AbstractContextManager[None]:
            blocks = [*before, *(part for part in taken if part in layers)]
            return passed_over(model, blocks, {part: instead.get(part) for part in taken if part not in layers})

        def divergence(taken: Sequence[str]) -> float:
            with without(taken):
                return judge.divergence(model)

        removal = cheapest(judged, divergence, self.asked.remove, self.asked.max_kl)
        if not all(map(math.isfinite, (*removal.divergences.values(), removal.together))):
            raise InvalidModel(
                f"what this model says of {text.source.name} holds NaN or infinity, with all of its layers or without "
                f"one, so {self.name!r} cannot be judged: check the checkpoint. Nothing was touched."
            )
        told = {
            **self._refit(model, before, without, text, removal),
            "held_out_divergence": removal.together, "divergences": removal.divergences, "influences": influence,
            "source": text.source.name, "sha256": text.source.digest,
        }  # fmt: skip
        return self._places(model, [layers[parts[part]] for part in removal.taken], len(layers)), told

    def _refit(
        self, model: nn.Module, before: Sequence[str], without: Callable[[Sequence[str]], AbstractContextManager[None]],
        text: SurgeryText, removal: Removal,
    ) -> dict[str, Any]:  # fmt: skip
        """Fit what lies behind all that goes anew, and keep that where held-out text loses less; what is to be told of
        it. Where one part goes, the next cheapest are tried in its place: more may lie behind them. What was fitted for
        an edit before this one is tried as it is, too."""
        self._text = text
        if not self.asked.refit or not removal.taken:
            return {}
        told = {"as_taken_out": removal.together}

        def try_out(taken: list[str], found: dict[str, Tensor]) -> None:
            if not found:  # nothing lies behind that can be fitted
                return
            twins = {path: twin_of(model.get_submodule(path), {"weight": weight}) for path, weight in found.items()}
            with without(taken), stood_in(model, twins):
                divergence = text.held_out.divergence(model)
            if math.isfinite(divergence):
                told["refitted"] = min(told.get("refitted", math.inf), divergence)
            if divergence < removal.together:
                removal.taken, removal.together, text.refitted = taken, divergence, found

        earlier, text.refitted = text.refitted, {}
        alone = sorted(removal.divergences, key=lambda part: removal.divergences[part])[:TRIED]
        ways = [[part] for part in alone] if len(removal.taken) == 1 else [removal.taken]
        left = {path: found for path, found in earlier.items() if not any(within(path, part) for part in ways[0])}
        try_out(ways[0], left)
        for taken in ways:
            gone = [*before, *taken]
            found = refit_stream(
                model, _layers(model), gone, partial(without, taken), text.strayed, meant=self._may_be_fit,
                tokens=text.learned.tokens,
            )  # fmt: skip
            try_out(taken, found)
        return told

    def put_refitted(self, journal: Journal, model: nn.Module) -> str:
        """Give what lies behind its new weights, before layers are numbered anew; what is to be said of it."""
        text, self._text = self._text, None
        found = dict(text.refitted) if text is not None else {}
        if text is not None:
            text.refitted = {}  # of several edits the first one to write does it for all
        for path, weight in found.items():
            owner: Any = model.get_submodule(path)
            journal.set(owner, "weight", nn.Parameter(weight, requires_grad=owner.weight.requires_grad))
        return f"; {len(found)} linear layers behind are fitted again" if found else ""

    def _may_be_fit(self, path: str) -> bool:
        """Whether a layer behind what goes may get other weights: targets say what goes, `skip` what stays as it is."""
        return Chosen(skip=self.asked.skip).why_not(path, "unknown") is None

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
