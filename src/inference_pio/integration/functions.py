"""The documented functions: each one call on the shared manager. None measures, but for a profile's quality guard."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from inference_pio.configuration import ModelFamily, ModelOptimizationConfig
from inference_pio.configuration.config_manager import get_config_manager
from inference_pio.configuration.legacy import Migration, is_legacy
from inference_pio.configuration.legacy.told import warn_of_legacy
from inference_pio.contract.config import OptimizationConfig
from inference_pio.errors import InvalidSetting
from inference_pio.integration.applying import active_profile_name, apply_family_config, apply_family_profile
from inference_pio.integration.migrating import migrate, migrate_call
from inference_pio.integration.targets import named_target
from inference_pio.manager import get_optimization_manager
from inference_pio.undo.transaction import OnDrift

logger = logging.getLogger("inference_pio")
Configs = Mapping[str, OptimizationConfig] | Iterable[OptimizationConfig]


def apply_glm_optimizations(model: nn.Module, profile_name: str | None = None, **flags: Any) -> nn.Module:
    """Give a model exactly a profile's members, with the GLM family's defaults under them.

    The profile is the active one (see `ConfigManager.set_active_profile`), if none is named. Flags as keyword arguments
    are a legacy form. Raises as `apply_family_profile`.
    """
    return _by_profile_or_flags(model, ModelFamily.GLM, profile_name, flags)


def apply_qwen_optimizations(model: nn.Module, profile_name: str | None = None, **flags: Any) -> nn.Module:
    """The same with Qwen's defaults."""
    return _by_profile_or_flags(model, ModelFamily.QWEN, profile_name, flags)


def apply_model_family_optimizations(
    model: nn.Module, family: ModelFamily | str, profile_name: str | None = None, **flags: Any
) -> nn.Module:
    """The same for any family, by name. A legacy form of `optimize(model, profile, family=...)`."""
    family = ModelFamily.of(family)
    if flags:
        return _by_profile_or_flags(model, family, profile_name, flags)
    name = active_profile_name(profile_name)
    get_config_manager().get_profile(name)
    spelling = f"inference_pio.optimize(model, {name!r}, family={str(family)!r})"
    warn_of_legacy("apply_model_family_optimizations", spelling)
    return apply_family_profile(model, family, name)


def apply_optimizations_by_config(
    model: nn.Module, config: ModelOptimizationConfig | Configs | Mapping[str, Any] | object = None, **flags: Any
) -> nn.Module:
    """Give a model exactly the enabled members of a family config (wishes), or of a list or dict of configs (orders).

    A family config may also be given as the mapping that its file holds; a dict of configs has their names as keys.
    A configuration in a legacy form, an object that holds legacy flags, and flags as keyword arguments are migrated,
    with one DeprecationWarning that shows the new spelling. Raises as `apply_family_profile`; InvalidSetting for what
    is no config.
    """
    if flags:
        return _by_migration(model, migrate_call(None, config, flags))
    if isinstance(config, ModelOptimizationConfig):
        return apply_family_config(model, config)
    if isinstance(config, Mapping) and "family" in config:
        return apply_family_config(model, ModelOptimizationConfig.read(config, "the configuration"))
    if is_legacy(config) or _is_flat(config):
        return _by_migration(model, migrate(config))
    configs = _configs(config)
    if not any(one.enabled for one in configs):
        logger.warning("this configuration enables nothing: whatever was applied to this model is taken back.")
    return get_optimization_manager().set_target(model, named_target(configs))


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


def _by_profile_or_flags(
    model: nn.Module, family: ModelFamily, profile_name: str | None, flags: Mapping[str, Any]
) -> nn.Module:
    if flags:
        return _by_migration(model, migrate_call(family, profile_name, flags), calls=3)
    return apply_family_profile(model, family, active_profile_name(profile_name))


def _by_migration(model: nn.Module, migration: Migration, calls: int = 2) -> nn.Module:
    """Apply what a legacy form asks for; the warning points at who called the documented function."""
    spelling = f"apply_optimizations_by_config(model, {migration.call})"
    warn_of_legacy("this configuration", spelling, migration, stacklevel=calls + 1)
    return apply_family_config(model, migration.config)


def _is_flat(config: object) -> bool:
    """A mapping of words to plain values: legacy flags, if they are anything."""
    plain = (bool, int, float, str, type(None))
    return isinstance(config, Mapping) and bool(config) and all(isinstance(value, plain) for value in config.values())


def _configs(given: object) -> list[OptimizationConfig]:
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
