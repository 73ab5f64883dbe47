"""Mixtures of fewer experts: which go is told by the criterion that loses least on held-out text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from inference_pio.anatomy.prunable import Weights
from inference_pio.anatomy.routed_experts import RoutedExperts
from inference_pio.calibration.expert_refit import refit_experts
from inference_pio.calibration.expert_scores import CRITERIA, collect_expert_scores
from inference_pio.calibration.forward import Progress
from inference_pio.calibration.held_out import HeldOut
from inference_pio.calibration.source import CalibrationSource
from inference_pio.calibration.stood_in import stood_in
from inference_pio.calibration.twins import pruned_twin

REFITTED = "refitted"


@dataclass
class FewerExperts:
    """The experts that stay, by the path of the mixture, and how they were chosen."""

    kept: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, Weights] = field(default_factory=dict)
    criterion: str = ""
    divergences: dict[str, float] = field(default_factory=dict)
    refitted: bool = False

    def to_json(self) -> dict[str, Any]:
        return {"criterion": self.criterion, "refitted": self.refitted, "held_out_divergence": self.divergences}


def fewer_experts(
    model: nn.Module, mixtures: Sequence[RoutedExperts], counts: Mapping[str, int], learned: CalibrationSource,
    held_out: HeldOut, progress: Progress | None = None,
) -> FewerExperts:  # fmt: skip
    """Keep `counts[path]` experts of each mixture: those that the criterion calls worth most after whose choice the
    model is nearest to what it was. Tokens of those that go are sent to the next best, which are fitted again to make
    up for them where that helps. Nothing of the model is edited.
    """
    scores = collect_expert_scores(model, list(mixtures), learned, progress)
    found: dict[str, FewerExperts] = {}
    for criterion in CRITERIA:
        kept = {
            one.path: scores[one.path].by(criterion).topk(counts[one.path]).indices.sort().values for one in mixtures
        }
        weights = {one.path: one.only(kept[one.path]) for one in mixtures}
        found[criterion] = FewerExperts(kept, weights, criterion)
    divergences = {name: _divergence(model, mixtures, one, held_out) for name, one in found.items()}
    taken = found[min(divergences, key=lambda name: divergences[name])]
    again = {
        one.path: refit_experts(model, one, taken.weights[one.path], counts[one.path], learned) for one in mixtures
    }
    fitted = FewerExperts(taken.kept, again, taken.criterion, refitted=True)
    divergences[REFITTED] = _divergence(model, mixtures, fitted, held_out)
    taken = fitted if divergences[REFITTED] < divergences[taken.criterion] else taken
    taken.divergences = divergences
    return taken


def _divergence(model: nn.Module, mixtures: Sequence[RoutedExperts], found: FewerExperts, held_out: HeldOut) -> float:
    twins = {one.path: pruned_twin(one, found.weights[one.path], len(found.kept[one.path])) for one in mixtures}
    with stood_in(model, twins):
        return held_out.divergence(model)
