"""Several profiles on one loaded model: brought from one to the next by exact undo, each against the same baseline."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from inference_pio.errors import InvalidSetting, NothingApplied
from inference_pio.integration.asked import Asked
from inference_pio.integration.measured import NO_QUALITY, Stages, held_bytes, receipts_of
from inference_pio.manager import get_optimization_manager
from inference_pio.measure import (
    Measurement,
    ProbeSettings,
    Reference,
    compare_measurements,
    describe_machine,
    probe,
    probe_original,
)
from inference_pio.measure.freed_memory import return_freed_memory
from inference_pio.measure.report_profiles import ProfilesReport, Tried
from inference_pio.measure.target import input_device
from inference_pio.plan.plan import Plan
from inference_pio.sources import OpenedModel

PLAIN = "plain"
IN_ORDER = "the profiles were measured one after the other, so a drift of the machine falls on the later ones"


class ManyProfiles:
    """`plan()` looks; `measure()` measures the plain model, then the same model under each profile.

    A profile of which nothing applies is told with its reason and not measured. At the end, and after any error, the
    model is plain again.
    """

    def __init__(self, asked: Sequence[Asked], stages: Stages, settings: ProbeSettings | None = None) -> None:
        if not asked:
            raise InvalidSetting("there is no profile to compare: name at least one.")
        self._asked, self._stages = {one.profile: one for one in asked}, stages
        self._settings = settings or ProbeSettings()
        self._plans: dict[str, Plan] = {}
        self._failed: dict[str, str] = {}

    def plan(self, opened: OpenedModel) -> list[Plan]:
        """The plans of those that apply; nothing is touched. Raises NothingApplied where none does."""
        self._opened, self._settings = opened, self._settings.fitted(opened.model)
        if opened.tokenizer is None:
            self._settings = replace(self._settings, quality_tokens=0)
        for name, asked in self._asked.items():
            try:
                self._plans[name] = asked.plan(opened)
            except NothingApplied as error:
                self._failed[name] = str(error)
        if not self._plans:
            raise NothingApplied(" ".join(self._failed.values()))
        return list(self._plans.values())

    def measure(self) -> ProfilesReport:
        """Do what `plan` said. Takes minutes. Raises MeasureError, DiskFull and what applying raises."""
        with ExitStack() as after:
            after.callback(get_optimization_manager().remove_optimizations, self._opened.model)
            baseline, reference = self._baseline()
            if reference is not None:
                after.enter_context(reference)
            tried = [self._tried(name, baseline, reference) for name in self._asked]
        no_quality = [NO_QUALITY] if reference is None else []
        return ProfilesReport(
            model=self._opened.name, baseline=baseline, profiles=tried, baseline_name=self._baseline_name(),
            machine=describe_machine(input_device(self._opened.model)),
            notes=[IN_ORDER, *self._same_plans(), *no_quality, *self._opened.notes],
        )  # fmt: skip

    def _baseline(self) -> tuple[Measurement, Reference | None]:
        model, tokenizer, told = self._opened.model, self._opened.tokenizer, self._stages(PLAIN)
        return_freed_memory()
        if tokenizer is None:
            return probe(model, None, settings=self._settings, progress=told)[0], None
        return probe_original(model, tokenizer, self._settings, told)

    def _tried(self, name: str, baseline: Measurement, reference: Reference | None) -> Tried:
        if name in self._failed:
            return Tried(name, failed=self._failed[name])
        opened, told = self._opened, self._stages(name)
        self._asked[name].apply(opened)
        return_freed_memory()
        held = held_bytes(opened.model)
        found, quality = probe(opened.model, opened.tokenizer, reference, held, self._settings, told)
        return Tried(
            name, self._plans[name].to_json(), receipts_of(opened.model), found,
            compare_measurements(baseline, found, quality),
        )  # fmt: skip

    def _baseline_name(self) -> str:
        dtype = str(getattr(self._opened.model, "dtype", "")).removeprefix("torch.")
        return f"{PLAIN} {dtype}".strip()

    def _same_plans(self) -> list[str]:
        """Who sees two profiles with different numbers must hear that they are one plan, and the difference noise."""
        seen: dict[Any, str] = {}
        notes = []
        for name, plan in self._plans.items():
            signature = tuple((step.name, *step.signature) for step in plan.steps)
            if signature in seen:
                notes.append(f"{name} plans the same steps as {seen[signature]} here: they differ by chance alone")
            else:
                seen[signature] = name
        return notes
