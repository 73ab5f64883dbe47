"""A model by its source together with what it is to have: what a command line asks for."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import nn

from inference_pio.anatomy.family import model_type_of
from inference_pio.configuration import UNBOUNDED, ModelFamily, QualityBounds, family_of_model
from inference_pio.contract.verdict import Verdict
from inference_pio.errors import InvalidSetting, SourceError
from inference_pio.integration.applying import apply_profile, plan_profile
from inference_pio.integration.guarded import keep_verdict
from inference_pio.integration.loading import Budgets, load_within
from inference_pio.integration.saved import is_saved
from inference_pio.integration.targets import Changes, check_profile, profile_target
from inference_pio.measure.hardware import Hardware, hardware_of
from inference_pio.plan.plan import Plan
from inference_pio.plan.skeleton import device_of
from inference_pio.plan.target import Wanted
from inference_pio.sources import OpenedModel, open_model
from inference_pio.sources.folder import read_tokenizer


@dataclass(frozen=True)
class Asked:
    """A source (see `open_model`), a profile and orders on top; wrong names are told before anything is opened.

    Raises UnknownName, InvalidSetting.
    """

    spec: str
    profile: str = "balanced"
    changes: Changes = field(default_factory=Changes)
    dtype: torch.dtype | Literal["auto"] = torch.bfloat16
    device: str | None = None
    trust_remote_code: bool = False
    hardware: str | None = None
    bounds: QualityBounds = UNBOUNDED
    _verdicts: list[Verdict] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_profile(self.profile, ModelFamily.OTHER, self.changes, self.hardware)
        if is_saved(self.spec):
            raise SourceError(
                f"{self.spec} holds a model that is optimized already: `pio generate` can run it as it is."
            )

    def open(self, dtype: torch.dtype | None = None, *, progress: bool = True) -> OpenedModel:
        """The plain model, in the dtype that is asked for or another one."""
        return open_model(
            self.spec, dtype=dtype or self.dtype, device=self.device, trust_remote_code=self.trust_remote_code,
            progress=progress,
        )  # fmt: skip

    def load(self, budgets: Budgets, *, progress: bool = True) -> tuple[OpenedModel, Plan | None]:
        """The model optimized while it loads, within a budget, with the plan that was followed. Raises PlanError."""
        if self.trust_remote_code:
            raise InvalidSetting("a model with code of its own is loaded whole: leave the budget out.")
        if self.bounds.any:
            raise InvalidSetting(
                "a quality guard compares with the plain model, which has no room in a budget: leave out one of them."
            )
        loaded = load_within(
            self.spec, self.profile, self.changes, budgets, dtype=self.dtype, device=self.device,
            hardware=self.hardware, progress=progress,
        )  # fmt: skip
        source = loaded.source
        tokenizer, without = read_tokenizer(source.folder)
        notes = (*loaded.notes, *without)
        plan = loaded.plan and replace(loaded.plan, model=source.name)
        return OpenedModel(loaded.model, tokenizer, source.name, source.origin, notes, source.folder), plan

    def target(self, model: nn.Module) -> list[Wanted]:
        """The profile's members as wishes with the defaults of the model's family and kind, and the orders."""
        here = self.here(model).name
        return profile_target(self.profile, family_of_model(model), self.changes, model_type_of(model), here)

    def here(self, model: nn.Module) -> Hardware:
        """The class of hardware of a model's device, or the one that is asked for."""
        return hardware_of(device_of(model), self.hardware)

    def plan(self, opened: OpenedModel) -> Plan:
        """What would be done to it; nothing is touched."""
        model = opened.model
        plan = plan_profile(model, self.profile, self.target(model), self.here(model), self.bounds)
        return replace(plan, model=opened.name)

    def apply(self, opened: OpenedModel) -> None:
        """Do it, in place; what a quality guard said of the first model holds for others opened after it.

        Raises as `apply_family_profile`.
        """
        model, target = opened.model, self.target(opened.model)
        if self._verdicts:
            keep_verdict(model, target, self.profile, self._verdicts[0])
            return
        verdict = apply_profile(model, self.profile, target, self.here(model), self.bounds, opened.tokenizer)
        self._verdicts.extend([verdict] if verdict else [])
