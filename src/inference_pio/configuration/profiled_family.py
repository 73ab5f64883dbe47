"""A profile laid over a family config: the config that does what the profile does for models of the family."""

from __future__ import annotations

from typing import Any

from inference_pio.configuration.family_config import ModelOptimizationConfig
from inference_pio.configuration.family_variant import FamilyVariant
from inference_pio.configuration.profiles import GlobalOptimizationProfile
from inference_pio.contract.config import OptimizationConfig


def with_profile(config: ModelOptimizationConfig, profile: GlobalOptimizationProfile) -> ModelOptimizationConfig:
    """The family's config with exactly the profile's members on, the profile's parameters over the family's.

    What the family switches off stays off. Variants keep their parameters and priorities, under the profile's.
    """
    own = {member.name: member for member in config.members}
    members = [_with_settings(own.get(name), name, profile.default_settings[name]) for name in profile.members]
    others = [
        member.model_copy(update={"enabled": False}) for name, member in own.items() if name not in profile.members
    ]
    return ModelOptimizationConfig(
        family=config.family, description=config.description, optimizations=(*members, *others),
        variants={kind: _variant(variant, profile) for kind, variant in config.variants.items()},
    )  # fmt: skip


def _with_settings(own: OptimizationConfig | None, name: str, settings: dict[str, Any]) -> OptimizationConfig:
    if own is None:
        return OptimizationConfig(name=name, parameters=settings)
    return own.model_copy(update={"parameters": {**own.parameters, **settings}})


def _variant(variant: FamilyVariant, profile: GlobalOptimizationProfile) -> FamilyVariant:
    """A variant whose members are the profile's; of those that it does not use it still says nothing."""
    defaults = {
        name: {**settings, **profile.default_settings.get(name, {})} for name, settings in variant.defaults.items()
    }
    return variant.model_copy(update={"defaults": defaults, "optimizations": None})
