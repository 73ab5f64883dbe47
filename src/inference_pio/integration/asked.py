"""A model by its source together with what it is to have: what a command line asks for."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import nn

from inference_pio.anatomy.family import model_type_of
from inference_pio.configuration import family_of_model, get_config_manager
from inference_pio.errors import InvalidSetting, SourceError
from inference_pio.integration.constraints import hold_constraints
from inference_pio.integration.loading import Budgets, load_within
from inference_pio.integration.saved import is_saved
from inference_pio.integration.targets import Changes, profile_target
from inference_pio.manager import get_optimization_manager
from inference_pio.plan.plan import Plan
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

    def __post_init__(self) -> None:
        self.target(nn.Module())
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
        loaded = load_within(
            self.spec, self.profile, self.changes, budgets, dtype=self.dtype, device=self.device, progress=progress
        )
        source = loaded.source
        tokenizer, without = read_tokenizer(source.folder)
        notes = (*loaded.notes, *without)
        plan = loaded.plan and replace(loaded.plan, model=source.name)
        return OpenedModel(loaded.model, tokenizer, source.name, source.origin, notes, source.folder), plan

    def target(self, model: nn.Module) -> list[Wanted]:
        """The profile's members as wishes with the defaults of the model's family and kind, and the orders."""
        return profile_target(self.profile, family_of_model(model), self.changes, model_type_of(model))

    def plan(self, opened: OpenedModel) -> Plan:
        """What would be done to it; nothing is touched."""
        plan = get_optimization_manager().plan(opened.model, self.target(opened.model), profile=self.profile)
        return replace(plan, model=opened.name)

    def apply(self, opened: OpenedModel) -> None:
        """Do it, in place. Raises PlanError where the profile asks for more than the model's device has."""
        target = self.target(opened.model)
        hold_constraints(get_config_manager().get_profile(self.profile), opened.model, target)
        get_optimization_manager().set_target(opened.model, target, profile=self.profile)
