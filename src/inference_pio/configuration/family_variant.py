"""`FamilyVariant`: what one kind of model of a family, told by its `config.model_type`, does otherwise."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from inference_pio.configuration.plain_data import Document


def as_tuple(given: object) -> object:
    """A list as a file gives it, as the tuple that settings hold."""
    return tuple(given) if isinstance(given, list) else given


def as_tuples(given: object) -> object:
    return {name: as_tuple(names) for name, names in given.items()} if isinstance(given, dict) else given


class FamilyVariant(Document):
    """Over the family's: parameters and dependencies are added to, priorities take the place of, the family's.

    `optimizations` are what this kind uses by default, in place of the family's; None leaves those. A profile that
    names another one still applies it, with the profile's own parameters.

    >>> FamilyVariant(priorities={"tensor_compression": 5}).priorities
    {'tensor_compression': 5}
    """

    description: str = Field(default="", description="What this kind of model needs, in a sentence.")
    optimizations: tuple[str, ...] | None = Field(
        default=None, description="The names of what it uses by default, in place of the family's."
    )
    defaults: dict[str, dict[str, Any]] = Field(default_factory=dict, description="Parameters by optimization.")
    priorities: dict[str, int] = Field(default_factory=dict, description="Priorities by optimization, lower first.")
    dependencies: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="For an optimization, the names of those that it needs."
    )

    @field_validator("optimizations")
    @classmethod
    def _each_once(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if twice := sorted({name for name in names or () if (names or ()).count(name) > 1}):
            raise ValueError(f"{', '.join(twice)} is given twice")
        return names

    _list_of_names = field_validator("optimizations", mode="before")(as_tuple)
    _lists_of_names = field_validator("dependencies", mode="before")(as_tuples)
