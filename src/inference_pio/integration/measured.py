"""One model measured before and after an edit, in place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from inference_pio.manager import get_optimization_manager
from inference_pio.measure import (
    Comparison,
    Measurement,
    ProbeSettings,
    Quality,
    Speed,
    compare_measurements,
    probe,
    probe_original,
)
from inference_pio.measure.freed_memory import return_freed_memory
from inference_pio.measure.probe import Progress
from inference_pio.measure.target import vocab_size
from inference_pio.measure.text import evaluation_tokens, sampled_tokens

NO_QUALITY = "quality was not measured: there is no tokenizer, and on random tokens it means nothing"
ONE_AFTER_THE_OTHER = "speeds were measured one after the other, before and after, not in turn"
Stages = Callable[[str], Progress]
"""Called with the name of a stage that begins; answers with what is told of its progress."""


@dataclass(frozen=True)
class BeforeAfter:
    """The numbers of one model before and after an edit, and how far its answers moved."""

    before: Measurement
    after: Measurement
    quality: Quality | None

    @property
    def comparison(self) -> Comparison:
        return compare_measurements(self.before, self.after, self.quality)


def before_and_after(
    model: nn.Module, act: Callable[[], object], tokenizer: Any, settings: ProbeSettings, stages: Stages | None = None,
    speeds: tuple[Speed, Speed] | None = None,
) -> BeforeAfter:  # fmt: skip
    """Measure a model, let `act` edit it, measure it again beside what it said before.

    `speeds`, before and after, are taken over where they were measured elsewhere: in turn with other models.
    """
    stage = stages or (lambda name: lambda phase, fraction: None)
    first, second = speeds or (None, None)
    return_freed_memory()
    if tokenizer is None:
        settings = replace(settings, quality_tokens=0)
        before, _ = probe(model, None, None, held_bytes(model), settings, stage("before"), speed=first)
        _act(act)
        return BeforeAfter(before, *probe(model, None, None, held_bytes(model), settings, stage("after"), speed=second))
    before, reference = probe_original(model, tokenizer, settings, stage("before"), speed=first)
    before = replace(before, resident_bytes=before.resident_bytes + held_bytes(model))
    with reference:
        _act(act)
        told = stage("after")
        return BeforeAfter(before, *probe(model, tokenizer, reference, held_bytes(model), settings, told, speed=second))


def _act(act: Callable[[], object]) -> None:
    act()
    return_freed_memory()


def prompt_tokens(model: nn.Module, tokenizer: Any, settings: ProbeSettings) -> Tensor:
    """What speed is measured on: real text, where there is a tokenizer."""
    known = vocab_size(model)
    if tokenizer is None:
        return sampled_tokens(known or 2, settings.prefill_tokens)
    tokens = evaluation_tokens(tokenizer, known, settings.prefill_tokens, settings.window)
    return tokens.reshape(1, -1)[:, : settings.prefill_tokens]


def held_bytes(model: nn.Module) -> int:
    """Memory that is kept so that the model's originals can be given back."""
    return int(get_optimization_manager().get_optimization_status(model)["held_bytes"])


def status_for_report(model: nn.Module) -> dict[str, Any]:
    """What `get_model_optimization_status` says, without the receipts: those stand beside it in a report."""
    status = get_optimization_manager().get_optimization_status(model)
    applied = [{key: one[key] for key in ("name", "type", "stage", "parameters", "counted") if key in one}
               for one in status["applied_optimizations"]]  # fmt: skip
    kept = {key: value for key, value in status.items() if key not in ("applied", "optimizations")}
    return {**kept, "applied_optimizations": applied}


def receipts_of(model: nn.Module) -> list[dict[str, Any]]:
    """The receipts of what stands on a model, each with what it has `counted` since, as plain data."""
    applied = get_optimization_manager().get_optimization_status(model)["applied_optimizations"]
    return [one["receipt"] | {key: one[key] for key in ("counted",) if key in one} for one in applied]
