"""A pipeline's call on one model, measured before and after it, and after each step: `optimize(measure=True)`."""

from __future__ import annotations

from typing import Any

from torch import nn

from inference_pio.integration.each_step import IN_STEPS, EachStep
from inference_pio.integration.measured import (
    NO_QUALITY,
    ONE_AFTER_THE_OTHER,
    before_and_after,
    prompt_tokens,
    receipts_of,
    status_for_report,
)
from inference_pio.integration.pipeline import OptimizationPipeline
from inference_pio.measure import ProbeSettings, Report, describe_machine
from inference_pio.measure.target import input_device


def measure_around(
    model: nn.Module, pipeline: OptimizationPipeline, tokenizer: Any = None, settings: ProbeSettings | None = None, *,
    each_step: bool = False,
) -> Report:  # fmt: skip
    """Measure, optimize, measure again; quality only with a tokenizer, and with `each_step` after every step too.

    Raises MeasureError before the first edit for a model that cannot be measured. After the edit the model keeps the
    optimizations, whatever is raised.
    """
    plan, work = pipeline.plan(model), (settings or ProbeSettings()).fitted(model)
    found = before_and_after(model, lambda: pipeline(model, tokenizer), tokenizer, work)
    steps = []
    if each_step:
        run = EachStep(model, tokenizer, work, lambda name: lambda phase, fraction: None)
        steps = run.measure((found.before, found.after), found.quality, prompt_tokens(model, tokenizer, work))
    notes = [ONE_AFTER_THE_OTHER, *([IN_STEPS] if steps else []), *([] if found.quality else [NO_QUALITY])]
    return Report(
        model=plan.model, profile=plan.profile, plan=plan.to_json(), receipts=receipts_of(model),
        baseline=found.before, optimized=found.after, comparison=found.comparison,
        machine=describe_machine(input_device(model)), notes=notes, baseline_name="before", optimized_name="after",
        status=status_for_report(model), steps=steps,
    )  # fmt: skip
