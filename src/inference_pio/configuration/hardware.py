"""The classes of hardware that a profile may tell apart, and what it does differently on one of them."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from inference_pio.configuration.performance_targets import PerformanceTargets
from inference_pio.configuration.plain_data import Document
from inference_pio.configuration.quality_bounds import MaxKL, MaxPerplexityRatio
from inference_pio.configuration.resource_constraints import ResourceConstraints
from inference_pio.errors import UnknownName

HARDWARE_CLASSES = ("hopper", "ampere_ada", "small_gpu", "cpu")
"""NVIDIA GPUs of compute capability 9.0 and newer; older ones; any of at most 16 GB; whatever is no NVIDIA GPU."""


def check_hardware_class(name: object) -> str:
    """Raise UnknownName, with the nearest known ones, for what is no class.

    >>> check_hardware_class("cpu")
    'cpu'
    """
    if name not in HARDWARE_CLASSES:
        raise UnknownName("hardware class", name, HARDWARE_CLASSES)
    return str(name)


def members_may_be_bare(schema: dict[str, Any]) -> None:
    schema["additionalProperties"] = {"anyOf": [schema["additionalProperties"], {"type": "null"}]}


class WithMembers(Document):
    """A part of YAML with members and their parameters, where nothing behind a key stands for nothing said."""

    @field_validator("default_settings", mode="before", check_fields=False)
    @classmethod
    def _bare_members(cls, given: object) -> object:
        if not isinstance(given, dict):
            return given
        return {name: {} if parameters is None else parameters for name, parameters in given.items()}

    @field_validator("performance_targets", mode="before", check_fields=False)
    @classmethod
    def _targets(cls, given: object) -> object:
        return as_part(PerformanceTargets, given, "performance_targets")

    @field_validator("resource_constraints", mode="before", check_fields=False)
    @classmethod
    def _constraints(cls, given: object) -> object:
        return as_part(ResourceConstraints, given, "resource_constraints")


class HardwareDifference(WithMembers):
    """What a profile does differently on one class of hardware; what is not said stays as the profile has it.

    >>> HardwareDifference(without=["kernel_fusion"]).without
    ('kernel_fusion',)
    """

    default_settings: dict[str, dict[str, Any]] = Field(
        default_factory=dict, json_schema_extra=members_may_be_bare,
        description="Parameters laid over those of the profile's members, and members that join it here.",
    )  # fmt: skip
    without: tuple[str, ...] = Field(default=(), description="Members of the profile that are left out here.")
    performance_targets: PerformanceTargets | None = None
    resource_constraints: ResourceConstraints | None = None
    max_kl: MaxKL = None
    max_perplexity_ratio: MaxPerplexityRatio = None

    @field_validator("without", mode="before")
    @classmethod
    def _listed(cls, given: object) -> object:
        return tuple(given) if isinstance(given, list) else given


def as_part(kind: type[Document], given: object, whose: str) -> object:
    """A part of a document as its own kind; nothing behind its key is the same as no key."""
    if given is None or isinstance(given, dict):
        return kind.read(given, whose)
    return given
