"""A pipeline: a family and a profile, checked once, to be called on any number of models."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from inference_pio.anatomy.family import model_type_of
from inference_pio.configuration import ModelFamily, family_of_model
from inference_pio.integration.applying import active_profile_name, apply_family_profile
from inference_pio.integration.targets import profile_target
from inference_pio.manager import get_optimization_manager
from inference_pio.plan.plan import Plan


@dataclass(frozen=True)
class OptimizationPipeline:
    """`pipeline(model)` gives a model the profile's members; without a family, each model's own is taken.

    >>> OptimizationPipeline("balanced", ModelFamily.GLM)
    OptimizationPipeline(profile_name='balanced', model_family=ModelFamily.GLM): flash_attention, tensor_compression
    """

    profile_name: str
    model_family: ModelFamily | None = None

    def __post_init__(self) -> None:
        if self.model_family is not None:
            object.__setattr__(self, "model_family", ModelFamily.of(self.model_family))
        profile_target(self.profile_name, self.model_family or ModelFamily.OTHER)

    def __call__(self, model: nn.Module) -> nn.Module:
        """Optimize a model in place and return it; raises as `apply_family_profile`."""
        return apply_family_profile(model, self._family(model), self.profile_name)

    def plan(self, model: nn.Module) -> Plan:
        """What a call on this model would do; nothing is touched."""
        target = profile_target(self.profile_name, self._family(model), model_type=model_type_of(model))
        return get_optimization_manager().plan(model, target, profile=self.profile_name)

    def _family(self, model: nn.Module) -> ModelFamily:
        return self.model_family or family_of_model(model)

    def __repr__(self) -> str:
        names = ", ".join(wanted.name for wanted in profile_target(self.profile_name, self.model_family or _OTHER))
        asked = f"profile_name={self.profile_name!r}, model_family={self.model_family!r}"
        return f"{type(self).__name__}({asked}): {names}"


_OTHER = ModelFamily.OTHER


def create_optimization_pipeline(
    model_family: ModelFamily | str | None = None, profile_name: str | None = None
) -> OptimizationPipeline:
    """A reusable callable for a family (each model's own, if None) and a profile (the active one, if None).

    Both are checked here.

    Raises UnknownName.
    """
    return OptimizationPipeline(
        active_profile_name(profile_name), None if model_family is None else ModelFamily.of(model_family)
    )
