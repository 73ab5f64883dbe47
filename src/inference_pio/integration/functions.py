"""The documented functions: each one call on the shared manager. None of them measures."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from inference_pio.configuration import ModelFamily, ModelOptimizationConfig, family_of_model
from inference_pio.configuration.config_manager import get_config_manager
from inference_pio.contract.config import OptimizationConfig
from inference_pio.errors import InvalidSetting
from inference_pio.integration.targets import family_source, family_target, named_target, profile_target
from inference_pio.manager import get_optimization_manager
from inference_pio.undo.transaction import OnDrift

logger = logging.getLogger("inference_pio")

Configs = Mapping[str, OptimizationConfig] | Iterable[OptimizationConfig]


def apply_glm_optimizations(model: nn.Module, profile_name: str = "balanced") -> nn.Module:
    """Give a model exactly a profile's members, with the GLM family's defaults under them."""
    return apply_model_family_optimizations(model, ModelFamily.GLM, profile_name)


def apply_qwen_optimizations(model: nn.Module, profile_name: str = "balanced") -> nn.Module:
    """Give a model exactly a profile's members, with the Qwen family's defaults under them."""
    return apply_model_family_optimizations(model, ModelFamily.QWEN, profile_name)


def apply_model_family_optimizations(
    model: nn.Module, family: ModelFamily | str, profile_name: str = "balanced"
) -> nn.Module:
    """Give a model exactly a profile's members, with a family's defaults under them.

    What the model has and the profile has not is taken back; what is the same is not touched. A model that tells
    another family is optimized all the same, with a warning in the log.

    Raises UnknownName, InvalidModel, the errors of PlanError (NothingApplied where no member applies), ModelDrift,
    ModelBusy; then the model is as before the call.
    """
    family = ModelFamily.of(family)
    target = profile_target(profile_name, family)
    _tell_other_family(model, family)
    return get_optimization_manager().set_target(model, target, profile=profile_name)


def apply_optimizations_by_config(model: nn.Module, config: ModelOptimizationConfig | Configs) -> nn.Module:
    """Give a model exactly the enabled members of a family config (wishes), or of a list or dict of configs (orders).

    A dict's keys are the names of its configs. Raises as `apply_model_family_optimizations`; InvalidSetting for what
    is no config.
    """
    manager = get_optimization_manager()
    if isinstance(config, ModelOptimizationConfig):
        return manager.set_target(model, family_target(config), profile=family_source(config))
    return manager.set_target(model, named_target(_configs(config)))


def update_model_optimization(
    model: nn.Module, name: str, enabled: bool, parameters: Mapping[str, Any] | None = None
) -> nn.Module:
    """Switch one optimization on (an order: it applies or raises) or off, at run time; the others stay.

    Switching off what is off does nothing and says so in the log. Raises UnknownName, InvalidSetting, NoEffect.
    """
    manager = get_optimization_manager()
    if not isinstance(enabled, bool):
        raise InvalidSetting(f"enabled must be True or False, not {enabled!r}.")
    if enabled:
        return manager.apply_optimizations(model, [name], parameters={name: parameters} if parameters else None)
    if parameters:
        raise InvalidSetting(f"parameters have no meaning for {name} with enabled=False: leave them out.")
    return manager.remove_optimizations(model, [name])


def get_model_optimization_status(model: nn.Module) -> dict[str, Any]:
    """What is applied, what was skipped and why, and what it costs, as plain data."""
    return get_optimization_manager().get_optimization_status(model)


def get_supported_optimizations(family: ModelFamily | str | None = None) -> list[str]:
    """The names of all optimizations, or of those that a family's config holds.

    >>> get_supported_optimizations("glm")
    ['flash_attention', 'tensor_compression']
    """
    names = get_optimization_manager().get_available_optimizations()
    if family is None:
        return names
    config = get_config_manager().get_family_config(family)
    return [name for name in names if config.member(name) is not None]


def reset_model_optimizations(model: nn.Module, on_drift: OnDrift = "raise") -> nn.Module:
    """Take every optimization back: the model is, bit by bit, what it was.

    Raises ModelDrift where somebody else changed the model meanwhile, unless `on_drift="discard"`.
    """
    return get_optimization_manager().remove_optimizations(model, on_drift=on_drift)


def _tell_other_family(model: nn.Module, family: ModelFamily) -> None:
    detected = family_of_model(model)
    if detected not in (family, ModelFamily.OTHER):
        logger.warning(
            "this %s is of the %s family, and it is optimized with the defaults of %s.",
            type(model).__name__, detected.name, family.name,
        )  # fmt: skip


def _configs(given: Configs) -> list[OptimizationConfig]:
    if isinstance(given, OptimizationConfig) or not isinstance(given, Iterable) or isinstance(given, str):
        raise InvalidSetting(f"give a ModelOptimizationConfig, or a list or dict of OptimizationConfig, not {given!r}.")
    named = list(given.items()) if isinstance(given, Mapping) else [(None, config) for config in given]
    for name, config in named:
        if not isinstance(config, OptimizationConfig):
            raise InvalidSetting(f"every member must be an OptimizationConfig, and {config!r} is none.")
        if name not in (None, config.name):
            raise InvalidSetting(f"this configuration is named {config.name!r}, but it was given for {name!r}.")
    names = [config.name for _, config in named]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidSetting(f"{', '.join(twice)} is given twice: keep one of them.")
    return [config for _, config in named]
