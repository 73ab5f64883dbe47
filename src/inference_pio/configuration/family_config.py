"""`ModelOptimizationConfig`: what one family uses by default, with parameters, priorities and dependencies."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, field_validator

from inference_pio.configuration.families import ModelFamily
from inference_pio.contract.config import OptimizationConfig, OptimizationType
from inference_pio.contract.settings import Settings


class ModelOptimizationConfig(Settings):
    """A family's optimizations; those with `enabled` are the ones it uses by default.

    >>> ModelOptimizationConfig(family="glm", optimizations=[{"name": "flash_attention"}]).enabled[0].name
    'flash_attention'
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)

    family: ModelFamily
    description: str = ""
    optimizations: tuple[OptimizationConfig, ...] = ()

    @field_validator("optimizations", mode="before")
    @classmethod
    def _from_plain_data(cls, given: object) -> object:
        return tuple(map(_member, given)) if isinstance(given, list | tuple) else given

    @field_validator("optimizations")
    @classmethod
    def _each_once(cls, members: tuple[OptimizationConfig, ...]) -> tuple[OptimizationConfig, ...]:
        names = [member.name for member in members]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{', '.join(twice)} is given twice")
        return members

    @property
    def enabled(self) -> tuple[OptimizationConfig, ...]:
        return tuple(member for member in self.optimizations if member.enabled)

    def member(self, name: str) -> OptimizationConfig | None:
        """What this family says of one optimization, or None where it says nothing."""
        return next((member for member in self.optimizations if member.name == name), None)


def _member(given: object) -> object:
    """A member as YAML gives it, its type as a word and its dependencies as a list."""
    if not isinstance(given, dict):
        return given
    member: dict[str, Any] = dict(given)
    if isinstance(word := member.get("optimization_type"), str):
        member["optimization_type"] = _type_of(word)
    if isinstance(needed := member.get("dependencies"), list):
        member["dependencies"] = tuple(needed)
    return OptimizationConfig(**member)


def _type_of(word: str) -> OptimizationType:
    try:
        return OptimizationType(word)
    except ValueError:
        known = ", ".join(kind.value for kind in OptimizationType)
        raise ValueError(f"optimization_type {word!r} is not known: give one of {known}") from None
