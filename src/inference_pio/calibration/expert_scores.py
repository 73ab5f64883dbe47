"""What each expert of each mixture does for a text: how often it is chosen, and how much its answers count."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inference_pio.anatomy.routed_experts import RoutedExperts
from inference_pio.calibration.expert_inputs import DOWN, GATE_UP, routed
from inference_pio.calibration.forward import Progress, run_batches
from inference_pio.calibration.rows import Rows
from inference_pio.calibration.source import CalibrationSource

SUM, MEAN, FREQUENCY = "reap_sum", "reap_mean", "frequency"
CRITERIA = (SUM, MEAN, FREQUENCY)


@dataclass
class ExpertScores:
    """Sums over the tokens that were sent to each expert, float64 [experts]: their number, and the norms of its answers
    times the weight that the router gave it (REAP: Lasby et al. 2025).
    """

    count: Tensor
    weighted: Tensor

    def by(self, criterion: str) -> Tensor:
        """What an expert is worth, by the sum, by the mean over its tokens, or by their number alone.

        >>> scores = ExpertScores(torch.tensor([4.0, 1.0, 0.0]), torch.tensor([2.0, 1.0, 0.0]))
        >>> [scores.by(criterion).tolist() for criterion in CRITERIA]
        [[2.0, 1.0, 0.0], [0.5, 1.0, 0.0], [4.0, 1.0, 0.0]]
        """
        found = {SUM: self.weighted, MEAN: self.weighted / self.count.clamp(min=1), FREQUENCY: self.count}
        return found[criterion]


@torch.no_grad()
def collect_expert_scores(
    model: nn.Module, mixtures: list[RoutedExperts], source: CalibrationSource, progress: Progress | None = None
) -> dict[str, ExpertScores]:
    """By the path of the mixture. Rows that an `attention_mask` rules out are not counted."""
    found = {one.path: ExpertScores(*torch.zeros(2, one.width, dtype=torch.float64)) for one in mixtures}
    rows = Rows(gram=False)
    handles = [_watch(one, found[one.path], rows) for one in mixtures]
    try:
        run_batches(model, source, rows, [one.experts for one in mixtures], progress)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _watch(one: RoutedExperts, scores: ExpertScores, rows: Rows) -> torch.utils.hooks.RemovableHandle:
    def note(experts: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        hidden, chosen = routed(args, kwargs)
        shares = (args[2] if len(args) > 2 else kwargs["top_k_weights"]).reshape(chosen.shape)
        rows.calls[one.experts] += 1
        if (kept := rows.true_rows(len(hidden))) is not None:
            hidden, chosen, shares = (part[kept.to(part.device)] for part in (hidden, chosen, shares))
        for expert in torch.unique(chosen).tolist():
            if expert >= one.width:  # one beyond the last stands for "none" in a library's padded routing
                continue
            token, place = torch.where(chosen == expert)
            norms = _answers(experts, hidden[token], expert).norm(dim=-1)
            scores.count[expert] += len(token)
            scores.weighted[expert] += (norms.double() * shares[token, place].double()).sum().cpu()

    return one.module.get_submodule(one.experts.removeprefix(f"{one.path}.")).register_forward_pre_hook(
        note, with_kwargs=True
    )


def _answers(experts: nn.Module, given: Tensor, expert: int) -> Tensor:
    gate_up, down = experts.get_parameter(GATE_UP), experts.get_parameter(DOWN)
    inner: Tensor = experts._apply_gate(F.linear(given, gate_up[expert]))  # type: ignore[operator]
    return F.linear(inner, down[expert]).float()
