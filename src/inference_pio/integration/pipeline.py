"""A pipeline: a family and a profile, checked once, to be called on any number of models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from inference_pio.anatomy.family import model_type_of
from inference_pio.configuration import UNBOUNDED, ModelFamily, QualityBounds, check_hardware_class, family_of_model
from inference_pio.integration.applying import active_profile_name, apply_family_profile, plan_profile
from inference_pio.integration.targets import check_profile, profile_target
from inference_pio.measure.hardware import hardware_of
from inference_pio.plan.plan import Plan
from inference_pio.plan.skeleton import device_of


@dataclass(frozen=True)
class OptimizationPipeline:
    """`pipeline(model)` gives a model the profile's members; without a family, each model's own is taken.

    So is the class of hardware of each model's device, unless one is given. `bounds` go over those of the profile.

    >>> OptimizationPipeline("balanced", ModelFamily.GLM)
    OptimizationPipeline(profile_name='balanced', model_family=ModelFamily.GLM): flash_attention, tensor_compression
    """

    profile_name: str
    model_family: ModelFamily | None = None
    hardware: str | None = None
    bounds: QualityBounds = UNBOUNDED

    def __post_init__(self) -> None:
        if self.model_family is not None:
            object.__setattr__(self, "model_family", ModelFamily.of(self.model_family))
        if self.hardware is not None:
            check_hardware_class(self.hardware)
        check_profile(self.profile_name, self.model_family or ModelFamily.OTHER, hardware=self.hardware)

    def __call__(self, model: nn.Module, tokenizer: Any = None) -> nn.Module:
        """Optimize a model in place and return it; raises as `apply_family_profile`."""
        return apply_family_profile(
            model, self._family(model), self.profile_name, hardware=self.hardware, bounds=self.bounds,
            tokenizer=tokenizer,
        )  # fmt: skip

    def plan(self, model: nn.Module) -> Plan:
        """What a call on this model would do; nothing is touched."""
        here = hardware_of(device_of(model), self.hardware)
        target = profile_target(self.profile_name, self._family(model), None, model_type_of(model), here.name)
        return plan_profile(model, self.profile_name, target, here, self.bounds)

    def _family(self, model: nn.Module) -> ModelFamily:
        return self.model_family or family_of_model(model)

    def __repr__(self) -> str:
        members = profile_target(self.profile_name, self.model_family or _OTHER, hardware=self.hardware)
        names = ", ".join(wanted.name for wanted in members)
        asked = f"profile_name={self.profile_name!r}, model_family={self.model_family!r}"
        asked += f", hardware={self.hardware!r}" if self.hardware else ""
        asked += f", {self.bounds}" if self.bounds.any else ""
        return f"{type(self).__name__}({asked}): {names}"


_OTHER = ModelFamily.OTHER


def create_optimization_pipeline(
    model_family: ModelFamily | str | None = None, profile_name: str | None = None, *, hardware: str | None = None,
    max_kl: float | None = None, max_perplexity_ratio: float | None = None,
) -> OptimizationPipeline:  # fmt: skip
    """A reusable callable for a family (each model's own, if None) and a profile (the active one, if None).

    `hardware` is a class to take in place of each model's own, the bounds go over those of the profile. All are checked
    here.

    Raises UnknownName, InvalidSetting.
    """
    return OptimizationPipeline(
        active_profile_name(profile_name), None if model_family is None else ModelFamily.of(model_family), hardware,
        QualityBounds(max_kl=max_kl, max_perplexity_ratio=max_perplexity_ratio),
    )  # fmt: skip
