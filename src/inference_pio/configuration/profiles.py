"""`GlobalOptimizationProfile`: a strategy across models: which optimizations, with which parameters."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field, field_validator

from inference_pio.contract.settings import Settings


class GlobalOptimizationProfile(Settings):
    """A profile's members are the keys of `default_settings`, each with its parameters.

    `performance_targets` and `resource_constraints` are told to the reader of a profile; nothing is held to them.

    >>> GlobalOptimizationProfile(name="mine", default_settings={"tensor_compression": {"format": "int8"}}).members
    ('tensor_compression',)
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    description: str = ""
    default_settings: dict[str, dict[str, Any]] = Field(min_length=1)
    performance_targets: dict[str, Any] | None = None
    resource_constraints: dict[str, Any] | None = None

    @field_validator("default_settings", mode="before")
    @classmethod
    def _bare_members(cls, given: object) -> object:
        """In YAML a member without parameters is a key with nothing behind it."""
        if not isinstance(given, dict):
            return given
        return {name: {} if parameters is None else parameters for name, parameters in given.items()}

    @property
    def members(self) -> tuple[str, ...]:
        return tuple(self.default_settings)
