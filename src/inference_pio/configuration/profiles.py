"""`GlobalOptimizationProfile`: a strategy across models: which optimizations, with which parameters."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from inference_pio.configuration.performance_targets import PerformanceTargets
from inference_pio.configuration.plain_data import Document
from inference_pio.configuration.resource_constraints import ResourceConstraints


def _members_may_be_bare(schema: dict[str, Any]) -> None:
    schema["additionalProperties"] = {"anyOf": [schema["additionalProperties"], {"type": "null"}]}


class GlobalOptimizationProfile(Document):
    """A profile's members are the keys of `default_settings`, each with its parameters.

    `performance_targets` can be checked against a report (`targets_missed`), `resource_constraints` are held before a
    model is touched.

    >>> GlobalOptimizationProfile(name="mine", default_settings={"tensor_compression": {"format": "int8"}}).members
    ('tensor_compression',)
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$", description="The word by which the profile is asked for.")
    description: str = Field(default="", description="What the profile is for, in a sentence.")
    default_settings: dict[str, dict[str, Any]] = Field(
        min_length=1, json_schema_extra=_members_may_be_bare,
        description="The optimizations that the profile gives a model, each with its parameters (or nothing).",
    )  # fmt: skip
    performance_targets: PerformanceTargets = PerformanceTargets()
    resource_constraints: ResourceConstraints = ResourceConstraints()

    @field_validator("default_settings", mode="before")
    @classmethod
    def _bare_members(cls, given: object) -> object:
        """In YAML a member without parameters is a key with nothing behind it."""
        if not isinstance(given, dict):
            return given
        return {name: {} if parameters is None else parameters for name, parameters in given.items()}

    @field_validator("performance_targets", mode="before")
    @classmethod
    def _targets(cls, given: object) -> object:
        return _part(PerformanceTargets, given, "performance_targets")

    @field_validator("resource_constraints", mode="before")
    @classmethod
    def _constraints(cls, given: object) -> object:
        return _part(ResourceConstraints, given, "resource_constraints")

    @property
    def members(self) -> tuple[str, ...]:
        return tuple(self.default_settings)


def _part(kind: type[Document], given: object, whose: str) -> object:
    """A part of a document as its own kind; nothing behind its key is the same as no key."""
    if given is None or isinstance(given, dict):
        return kind.read(given, whose)
    return given
