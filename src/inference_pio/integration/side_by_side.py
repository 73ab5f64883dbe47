"""An optimized model beside its plain forms in one run: each measured alone, then all of them timed in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import psutil
import torch
from torch import nn

from inference_pio.integration.asked import Asked
from inference_pio.integration.each_step import IN_STEPS, EachStep
from inference_pio.integration.measured import (
    NO_QUALITY,
    Stages,
    before_and_after,
    prompt_tokens,
    receipts_of,
    status_for_report,
)
from inference_pio.measure import (
    Comparison,
    Measurement,
    ProbeSettings,
    Quality,
    Report,
    Speed,
    compare_measurements,
    describe_machine,
    measure_speed_interleaved,
    probe,
)
from inference_pio.measure.freed_memory import return_freed_memory
from inference_pio.measure.report_steps import AfterStep
from inference_pio.measure.target import input_device
from inference_pio.plan.plan import Plan
from inference_pio.sources import OpenedModel

OPTIMIZED, IN_TURN = "optimized", "all in turn"
SPARE = 1.5
"""Memory asked for a further model, in multiples of its weights: activations, caches and copies come with it."""


@dataclass(frozen=True)
class Outcome:
    """The optimized model, and the report on it."""

    opened: OpenedModel
    report: Report


class SideBySide:
    """`plan()` looks; `measure()` times the plain and the optimized model in turn, then measures each of them alone.

    On the CPU the other one of float32 and bfloat16 stands beside, because neither is always the faster: the decode
    ratio is against the faster plain model, every other ratio against the plain model that was optimized. What does
    not fit into memory is left out, and the report says so. With `each_step` the model is measured after each of its
    steps, too.
    """

    def __init__(
        self, asked: Asked, stages: Stages, settings: ProbeSettings | None = None, *, each_step: bool = False
    ) -> None:
        self._asked, self._stages, self._each_step = asked, stages, each_step
        self._settings = settings or ProbeSettings()
        self._notes: list[str] = []
        self._measured: dict[str, Measurement] = {}

    def plan(self, opened: OpenedModel | None = None) -> Plan:
        """Open the model, unless it is given, and plan; nothing is touched."""
        opened = opened or self._asked.open()
        self._plan = self._asked.plan(opened)
        self._settings = self._settings.fitted(opened.model)
        self._base = _dtype(opened.model)
        self._other = self._other_dtype(opened.model)
        self._in_turn = self._fits(1.0, opened.model, "speeds were measured one after the other, not in turn")
        return self._plan

    def measure(self) -> Outcome:
        """Do what `plan` said. Takes minutes. Raises MeasureError, DiskFull and what applying raises."""
        speeds = self._time_in_turn() if self._in_turn else {}
        if self._other is not None:
            name = _plain(self._other)
            self._measured[name] = self._alone(self._other, speeds.get(name))
        opened = self._asked.open(progress=False)
        quality = self._around(opened, speeds)
        steps = self._after_each_step(opened, quality) if self._each_step else []
        return Outcome(opened, self._report(opened, quality, steps))

    # ------------------------------------------------------------------ the steps

    def _time_in_turn(self) -> Mapping[str, Speed]:
        """All models in memory together, for this only: what each takes of it is measured when it is alone."""
        optimized = self._asked.open(progress=False)
        self._asked.apply(optimized)
        dtypes = [self._base] if self._other is None else [self._other, self._base]
        plain = {_plain(dtype): self._asked.open(dtype, progress=False).model for dtype in dtypes}
        work, prompt = self._settings, prompt_tokens(optimized.model, optimized.tokenizer, self._settings)
        arms = measure_speed_interleaved(
            {**plain, OPTIMIZED: optimized.model}, prompt, work.new_tokens, work.repeats,
            decode_prompt_tokens=work.decode_prompt_tokens, progress=self._stages(IN_TURN),
        )  # fmt: skip
        return arms.speeds

    def _alone(self, dtype: torch.dtype, speed: Speed | None) -> Measurement:
        """A plain model with no other one in memory, so that the peak is its own."""
        opened, settings = self._asked.open(dtype, progress=False), self._settings
        return_freed_memory()
        if opened.tokenizer is None:
            settings = replace(settings, quality_tokens=0)
        stage = self._stages(_plain(dtype))
        return probe(opened.model, opened.tokenizer, settings=settings, progress=stage, speed=speed)[0]

    def _around(self, opened: OpenedModel, speeds: Mapping[str, Speed]) -> Quality | None:
        names = {"before": _plain(self._base), "after": OPTIMIZED}
        found = before_and_after(
            opened.model, lambda: self._asked.apply(opened), opened.tokenizer, self._settings,
            lambda stage: self._stages(names[stage]), (speeds[names["before"]], speeds[OPTIMIZED]) if speeds else None,
        )  # fmt: skip
        self._measured |= {names["before"]: found.before, names["after"]: found.after}
        return found.quality

    def _after_each_step(self, opened: OpenedModel, quality: Quality | None) -> list[AfterStep]:
        ends = self._measured[_plain(self._base)], self._measured[OPTIMIZED]
        self._notes.append(IN_STEPS)
        run = EachStep(opened.model, opened.tokenizer, self._settings, self._stages)
        return run.measure(ends, quality, prompt_tokens(opened.model, opened.tokenizer, self._settings))

    # ------------------------------------------------------------------ what stands beside

    def _other_dtype(self, model: nn.Module) -> torch.dtype | None:
        if input_device(model).type != "cpu":
            return None
        other = torch.bfloat16 if self._base == torch.float32 else torch.float32
        models = 1.0 + other.itemsize / self._base.itemsize
        return other if self._fits(models, model, f"{_plain(other)} is not shown beside") else None

    def _fits(self, models: float, model: nn.Module, otherwise: str) -> bool:
        """Whether so many models fit into the free memory beside this one; if not, the report says so."""
        need, free = models * self._plan.weight_bytes_before * SPARE, _free_bytes(input_device(model))
        if need > free:
            self._notes.append(f"{otherwise}: it needs {need / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free")
        return need <= free

    def _report(self, opened: OpenedModel, quality: Quality | None, steps: Sequence[AfterStep]) -> Report:
        base = _plain(self._base)
        comparison, note = _compared(self._measured, base, quality)
        no_quality = [NO_QUALITY] if quality is None else []
        return Report(
            model=opened.name, profile=self._asked.profile, plan=self._plan.to_json(),
            receipts=receipts_of(opened.model), baseline=self._measured[base], optimized=self._measured[OPTIMIZED],
            comparison=comparison, machine=describe_machine(input_device(opened.model)),
            notes=[*note, *self._notes, *no_quality, *opened.notes],
            shown_beside={name: one for name, one in self._measured.items() if name not in (base, OPTIMIZED)},
            baseline_name=base, optimized_name=OPTIMIZED, status=status_for_report(opened.model), steps=steps,
        )  # fmt: skip


def _compared(measured: dict[str, Measurement], base: str, quality: Quality | None) -> tuple[Comparison, list[str]]:
    """All ratios against the baseline, but decode against the faster plain model; and a note that says so."""
    comparison = compare_measurements(measured[base], measured[OPTIMIZED], quality)
    plain = [name for name in measured if name != OPTIMIZED]
    if len(plain) == 1:
        return comparison, []
    faster = max(plain, key=lambda name: measured[name].decode_tokens_per_s)
    decode = compare_measurements(measured[faster], measured[OPTIMIZED])
    intervals = {**comparison.intervals, "decode_speedup": decode.intervals["decode_speedup"]}
    note = f"the decode ratio is against {faster}, the faster plain one here; all other ratios are against {base}"
    return replace(comparison, decode_speedup=decode.decode_speedup, intervals=intervals), [note]


def _plain(dtype: torch.dtype) -> str:
    return f"plain {str(dtype).removeprefix('torch.')}"


def _dtype(model: nn.Module) -> torch.dtype:
    return next(tensor.dtype for tensor in model.parameters() if tensor.is_floating_point())


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
