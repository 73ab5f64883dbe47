"""A model measured after each of its steps: one loaded model, brought back and forth between them by exact undo."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from inference_pio.integration.measured import Stages, held_bytes
from inference_pio.integration.standing import Standing
from inference_pio.manager import get_optimization_manager
from inference_pio.measure import (
    Measurement,
    ProbeSettings,
    Quality,
    Reference,
    Speed,
    compare_measurements,
    measure_speed_interleaved,
    probe,
)
from inference_pio.measure.freed_memory import return_freed_memory
from inference_pio.measure.report_steps import AfterStep
from inference_pio.measure.speed import exercise
from inference_pio.measure.target import vocab_size
from inference_pio.measure.text import evaluation_tokens

PLAIN = "plain"
IN_STEPS = "the steps were timed in turn on one model, which was switched and warmed up before every round"


class EachStep:
    """Measures a model that stands with all its steps; it stands so again afterwards, and after any error.

    Steps that a quality guard took back are none of them.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, settings: ProbeSettings, stages: Stages) -> None:
        self._model, self._tokenizer, self._settings, self._stages = model, tokenizer, settings, stages
        self._whole = Standing.of(model)
        self._names = get_optimization_manager().get_model_optimizations(model)

    def measure(
        self, ends: tuple[Measurement, Measurement], quality: Quality | None, prompt: Tensor
    ) -> list[AfterStep]:
        """The plain model, then one entry a step; `ends` are the model as measured plain and with all steps."""
        with ExitStack() as after:
            after.callback(self._whole.bring_back, self._model)
            speeds = self._time(prompt)
            plain, last = ends[0].with_speed(speeds[PLAIN]), ends[1].with_speed(speeds[self._names[-1]])
            reference = self._reference() if len(self._names) > 1 else None
            if reference is not None:
                after.enter_context(reference)
            between = [self._between(count, plain, reference, speeds) for count in range(1, len(self._names))]
        whole = AfterStep(self._names[-1], last, compare_measurements(plain, last, quality))
        return [AfterStep(PLAIN, plain), *between, whole]

    def _time(self, prompt: Tensor) -> Mapping[str, Speed]:
        work = self._settings
        names = {PLAIN: 0} | {name: count for count, name in enumerate(self._names, 1)}
        arms = {name: partial(self._ready, count, prompt) for name, count in names.items()}
        return measure_speed_interleaved(
            arms, prompt, work.new_tokens, work.repeats, decode_prompt_tokens=work.decode_prompt_tokens,
            progress=self._stages("step by step"),
        ).speeds  # fmt: skip

    def _ready(self, count: int, prompt: Tensor) -> nn.Module:
        """The model with its first steps, warm: what a step prepares in its first call is not timed."""
        self._bring_to(count)
        exercise(self._model, prompt, self._settings.new_tokens, self._settings.decode_prompt_tokens)
        return self._model

    def _bring_to(self, count: int) -> None:
        wanted = [one for one in self._whole.target if one.name in self._names[:count]]
        get_optimization_manager().set_target(self._model, wanted, profile=self._whole.profile)
        return_freed_memory()

    def _reference(self) -> Reference | None:
        """What the plain model says, once more: the first record was let go with its disk space."""
        work = self._settings
        if self._tokenizer is None:
            return None
        self._bring_to(0)
        tokens = evaluation_tokens(self._tokenizer, vocab_size(self._model), work.quality_tokens, work.window)
        return Reference.record(self._model, tokens, progress=self._stages(PLAIN))

    def _between(
        self, count: int, plain: Measurement, reference: Reference | None, speeds: Mapping[str, Speed]
    ) -> AfterStep:
        self._bring_to(count)
        name, model = self._names[count - 1], self._model
        settings = self._settings if reference else replace(self._settings, quality_tokens=0)
        measured, quality = probe(
            model, self._tokenizer, reference, held_bytes(model), settings, self._stages(f"up to {name}"),
            speed=speeds[name],
        )  # fmt: skip
        return AfterStep(name, measured, compare_measurements(plain, measured, quality))
