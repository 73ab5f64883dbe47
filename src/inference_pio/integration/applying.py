"""A profile, or a family config, brought onto a model: what the documented functions have in common."""

from __future__ import annotations

import logging

from torch import nn

from inference_pio.anatomy.family import model_type_of
from inference_pio.configuration import ModelFamily, ModelOptimizationConfig, family_of_model
from inference_pio.configuration.config_manager import get_config_manager
from inference_pio.integration.constraints import hold_constraints
from inference_pio.integration.targets import family_source, family_target, profile_target
from inference_pio.manager import get_optimization_manager
from inference_pio.plan.make import check_model

logger = logging.getLogger("inference_pio")


def apply_family_profile(model: nn.Module, family: ModelFamily, profile_name: str) -> nn.Module:
    """Give a model exactly a profile's members, with the defaults of a family, and of its kind of model, under them.

    What the model has and the profile has not is taken back; what is the same is not touched. A model that tells
    another family is optimized all the same, with a warning in the log.

    Raises UnknownName, InvalidModel, the errors of PlanError (NothingApplied where no member applies, and where the
    profile asks for more than the device has), ModelDrift, ModelBusy; then the model is as before the call.
    """
    check_model(model)
    target = profile_target(profile_name, family, model_type=model_type_of(model))
    hold_constraints(get_config_manager().get_profile(profile_name), model, target)
    _tell_other_family(model, family)
    return get_optimization_manager().set_target(model, target, profile=profile_name)


def apply_family_config(model: nn.Module, config: ModelOptimizationConfig) -> nn.Module:
    """Give a model exactly what a family config uses by default for its kind of model, as wishes. The same errors."""
    check_model(model)
    target = family_target(config, model_type_of(model))
    return get_optimization_manager().set_target(model, target, profile=family_source(config))


def active_profile_name(given: str | None) -> str:
    """The profile that is given, or the active one. An unknown one is told where it is used."""
    return get_config_manager().get_active_profile().name if given is None else given


def _tell_other_family(model: nn.Module, family: ModelFamily) -> None:
    detected = family_of_model(model)
    if detected not in (family, ModelFamily.OTHER):
        logger.warning(
            "this %s is of the %s family, and it is optimized with the defaults of %s.",
            type(model).__name__, detected.name, family.name,
        )  # fmt: skip
