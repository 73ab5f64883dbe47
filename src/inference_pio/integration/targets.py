"""What a profile, a family config or a list of configs asks of a model: the members of a target set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from inference_pio.configuration import GlobalOptimizationProfile, ModelFamily, ModelOptimizationConfig
from inference_pio.configuration.config_manager import get_config_manager
from inference_pio.configuration.profiled_family import with_profile
from inference_pio.contract.config import OptimizationConfig
from inference_pio.errors import InferencePioError, InvalidSetting, UnknownName
from inference_pio.manager import get_optimization_manager
from inference_pio.plan.target import Wanted


@dataclass(frozen=True)
class Changes:
    """Orders on top of a profile: names to enable and to disable, parameters by name (which enable, too)."""

    enable: tuple[str, ...] = ()
    disable: tuple[str, ...] = ()
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if both := sorted({*self.enable, *self.parameters} & set(self.disable)):
            raise InvalidSetting(f"{', '.join(both)} cannot be switched on and off in one call: give one of them.")


def profile_target(
    profile_name: str, family: ModelFamily, changes: Changes | None = None, model_type: str | None = None,
    hardware: str | None = None,
) -> list[Wanted]:  # fmt: skip
    """A profile's members as wishes, its parameters over those of the family's kind of model, then the orders on top.

    On a class of `hardware` they are those that the profile has there.

    Raises UnknownName for a profile, an optimization or a parameter that is not known; InvalidSetting where nothing is
    left.
    """
    profile = get_config_manager().get_profile(profile_name).for_hardware(hardware)
    config = with_profile(get_config_manager().get_family_config(family), profile).for_model_type(model_type)
    wanted = changed({name: _wish(name, profile, config) for name in profile.members}, changes or Changes())
    if not wanted:
        raise InvalidSetting(f"nothing is left of profile {profile_name!r}: every member is disabled.")
    return list(wanted.values())


def check_profile(
    profile_name: str, family: ModelFamily, changes: Changes | None = None, hardware: str | None = None
) -> None:
    """Raise what `profile_target` raises for any class of hardware that the profile tells apart, or for the one given.

    Orders must fit one of them: a model's device is not known yet, and what is asked for on a GPU may make no sense
    with what the profile has on a CPU.
    """
    asked = (None, *get_config_manager().get_profile(profile_name).hardware) if hardware is None else (hardware,)
    for one in asked:
        profile_target(profile_name, family, hardware=one)
    refused: list[InferencePioError] = []
    for one in asked if changes is not None else ():
        try:
            profile_target(profile_name, family, changes, hardware=one)
        except (InvalidSetting, UnknownName) as error:
            refused.append(error)
        else:
            return
    if refused:
        raise refused[0]


def family_target(config: ModelOptimizationConfig, model_type: str | None = None) -> list[Wanted]:
    """The optimizations that a family uses by default for one kind of model, as wishes."""
    source = family_source(config)
    return [_from_config(one, order=False, source=source) for one in config.for_model_type(model_type).enabled]


def family_source(config: ModelOptimizationConfig) -> str:
    return f"defaults of the family {str(config.family)!r}"


def named_target(configs: Iterable[OptimizationConfig]) -> list[Wanted]:
    """The enabled ones of a list of configs, as orders."""
    return [_from_config(config, order=True, source="by config") for config in configs if config.enabled]


def _wish(name: str, profile: GlobalOptimizationProfile, config: ModelOptimizationConfig) -> Wanted:
    """A member of a profile, as the family's config under that profile has it."""
    own = config.member(name) or OptimizationConfig(name=name)
    wanted = _from_config(own, order=False, source=f"profile {profile.name!r}")
    if not own.enabled:
        return replace(wanted, off=wanted.off or f"switched off for the family {str(config.family)!r}")
    return wanted


def _from_config(config: OptimizationConfig, *, order: bool, source: str) -> Wanted:
    return get_optimization_manager().wanted(
        config.name, config.parameters, order=order, source=source, priority=_stated_priority(config),
        dependencies=config.dependencies,
    )  # fmt: skip


def _stated_priority(config: OptimizationConfig) -> int | None:
    """The priority, if one is stated; where it is not, what `configure_optimization` set stays."""
    return config.priority if "priority" in config.model_fields_set else None


def changed(wanted: dict[str, Wanted], changes: Changes) -> dict[str, Wanted]:
    """Members of a target set with the orders on top of them."""
    manager = get_optimization_manager()
    for name in dict.fromkeys((*changes.enable, *changes.parameters)):
        before = wanted.get(name)
        parameters = {**(before.parameters if before else {}), **changes.parameters.get(name, {})}
        wanted[name] = manager.wanted(
            name, parameters, priority=before.priority if before else None,
            dependencies=before.dependencies if before else (),
        )  # fmt: skip
    for name in changes.disable:
        manager.registry.get(name)
        wanted.pop(name, None)
    return wanted
