"""A profile, or a family config, brought onto a model: what the documented functions have in common."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from inference_pio.anatomy.family import model_type_of
from inference_pio.configuration import UNBOUNDED, ModelFamily, ModelOptimizationConfig, QualityBounds, family_of_model
from inference_pio.configuration.config_manager import get_config_manager
from inference_pio.contract.verdict import Verdict
from inference_pio.integration.constraints import hold_applied, hold_constraints
from inference_pio.integration.guarded import set_guarded_target
from inference_pio.integration.standing import Standing
from inference_pio.integration.targets import family_source, family_target, profile_target
from inference_pio.manager import get_optimization_manager
from inference_pio.measure.hardware import Hardware, hardware_of
from inference_pio.plan.make import check_model
from inference_pio.plan.plan import Plan
from inference_pio.plan.skeleton import device_of
from inference_pio.plan.target import Wanted

logger = logging.getLogger("inference_pio")


def apply_family_profile(
    model: nn.Module, family: ModelFamily, profile_name: str, *, hardware: str | None = None,
    bounds: QualityBounds = UNBOUNDED, tokenizer: Any = None,
) -> nn.Module:  # fmt: skip
    """Give a model exactly a profile's members, with the defaults of a family, and of its kind of model, under them.

    They are those of the class of hardware that the model is on, or of the one given. What the model has and the
    profile has not is taken back; what is the same is not touched. A model that tells another family is optimized all
    the same, with a warning in the log. `bounds` go over those of the profile; the quality guard reads text with the
    `tokenizer`.

    Raises UnknownName, InvalidModel, the errors of PlanError (NothingApplied where no member applies, and where the
    profile asks for more than the device has), ModelDrift, ModelBusy, and under bounds QualityBroken and MeasureError;
    then the model is as before the call.
    """
    check_model(model)
    here = hardware_of(device_of(model), hardware)
    target = profile_target(profile_name, family, None, model_type_of(model), here.name)
    _tell_other_family(model, family)
    apply_profile(model, profile_name, target, here, bounds, tokenizer)
    return model


def apply_profile(
    model: nn.Module, profile_name: str, target: Sequence[Wanted], here: Hardware, bounds: QualityBounds,
    tokenizer: Any = None,
) -> Verdict | None:  # fmt: skip
    """Give a model a profile's members, holding its constraints before and after, and its bounds. The same errors."""
    profile = get_config_manager().get_profile(profile_name).for_hardware(here.name)
    hold_constraints(profile, model, target)
    before = Standing.of(model)
    verdict = set_guarded_target(model, target, profile_name, bounds.over(profile.bounds), tokenizer)
    try:
        hold_applied(profile, model)
    except BaseException:
        before.bring_back(model)
        raise
    return verdict


def plan_profile(
    model: nn.Module, profile_name: str, target: Sequence[Wanted], here: Hardware, bounds: QualityBounds = UNBOUNDED
) -> Plan:
    """What `apply_profile` would do, for which class of hardware; nothing is touched, and nothing measured."""
    profile = get_config_manager().get_profile(profile_name).for_hardware(here.name)
    hold_constraints(profile, model, target)
    plan = get_optimization_manager().plan(model, target, profile=profile_name)
    held = bounds.over(profile.bounds)
    guarded = f"quality guard: {held} is measured after the apply, and members that break it are taken back."
    return replace(plan, hardware=str(here), notes=(*plan.notes, guarded) if held.any else plan.notes)


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
