"""`GlobalOptimizationProfile`: a strategy across models: which optimizations, with which parameters."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from inference_pio.configuration.hardware import (
    HARDWARE_CLASSES,
    HardwareDifference,
    WithMembers,
    as_part,
    check_hardware_class,
    members_may_be_bare,
)
from inference_pio.configuration.performance_targets import PerformanceTargets
from inference_pio.configuration.quality_bounds import MaxKL, MaxPerplexityRatio, QualityBounds
from inference_pio.configuration.resource_constraints import ResourceConstraints
from inference_pio.errors import InvalidSetting


def _classes_are_known(schema: dict[str, Any]) -> None:
    schema["propertyNames"] = {"enum": list(HARDWARE_CLASSES)}
    members_may_be_bare(schema)


class GlobalOptimizationProfile(WithMembers):
    """A profile's members are the keys of `default_settings`, each with its parameters.

    `performance_targets` can be checked against a report (`targets_missed`), `resource_constraints` are held before a
    model is touched and after, `max_kl` and `max_perplexity_ratio` by measuring what was applied.

    >>> GlobalOptimizationProfile(name="mine", default_settings={"tensor_compression": {"format": "int8"}}).members
    ('tensor_compression',)
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$", description="The word by which the profile is asked for.")
    description: str = Field(default="", description="What the profile is for, in a sentence.")
    default_settings: dict[str, dict[str, Any]] = Field(
        min_length=1, json_schema_extra=members_may_be_bare,
        description="The optimizations that the profile gives a model, each with its parameters (or nothing).",
    )  # fmt: skip
    performance_targets: PerformanceTargets = PerformanceTargets()
    resource_constraints: ResourceConstraints = ResourceConstraints()
    max_kl: MaxKL = None
    max_perplexity_ratio: MaxPerplexityRatio = None
    hardware: dict[str, HardwareDifference] = Field(
        default_factory=dict, json_schema_extra=_classes_are_known,
        description="What the profile does differently on a class of hardware.",
    )  # fmt: skip

    @field_validator("hardware", mode="before")
    @classmethod
    def _differences(cls, given: object) -> object:
        if not isinstance(given, dict):
            return {} if given is None else given
        return {
            check_hardware_class(name): as_part(HardwareDifference, difference, f"hardware.{name}")
            for name, difference in given.items()
        }

    @property
    def bounds(self) -> QualityBounds:
        """What its quality guard holds."""
        return QualityBounds(max_kl=self.max_kl, max_perplexity_ratio=self.max_perplexity_ratio)

    @property
    def members(self) -> tuple[str, ...]:
        return tuple(self.default_settings)

    def for_hardware(self, name: str | None) -> GlobalOptimizationProfile:
        """The profile as it is on one class of hardware, without sections for others; as it is written, for None.

        Raises UnknownName for what is no class, InvalidSetting where the section leaves out what the profile has not.

        >>> profile = GlobalOptimizationProfile(
        ...     name="mine", default_settings={"a": {}, "b": {}}, hardware={"cpu": {"without": ["b"]}})
        >>> profile.for_hardware("cpu").members
        ('a',)
        """
        if name is None:
            return self
        own = self.hardware.get(check_hardware_class(name)) or HardwareDifference()
        if unknown := sorted(set(own.without) - set(self.members)):
            raise InvalidSetting(
                f"profile {self.name!r}, hardware.{name}.without: {', '.join(unknown)} is no member of the profile."
            )
        settings = {member: given for member, given in self.default_settings.items() if member not in own.without}
        settings |= {member: settings.get(member, {}) | given for member, given in own.default_settings.items()}
        if not settings:
            raise InvalidSetting(f"profile {self.name!r} leaves nothing for the hardware class {name!r}.")
        said = {part: getattr(own, part) for part in _LAID_OVER if getattr(own, part) is not None}
        return self.model_copy(update={"default_settings": settings, "hardware": {}, **said}, deep=True)


_LAID_OVER = ("performance_targets", "resource_constraints", "max_kl", "max_perplexity_ratio")
