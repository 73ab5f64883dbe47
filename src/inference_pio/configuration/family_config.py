"""`ModelOptimizationConfig`: what one family uses by default, with parameters, priorities and dependencies."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from inference_pio.configuration.families import ModelFamily
from inference_pio.configuration.family_members import check_said_once, joined, read_member
from inference_pio.configuration.family_variant import FamilyVariant, as_tuples
from inference_pio.configuration.plain_data import Document
from inference_pio.contract.config import OptimizationConfig
from inference_pio.errors import UnknownName


def _members_may_be_names(schema: dict[str, Any]) -> None:
    schema["items"] = {"anyOf": [{"type": "string", "minLength": 1}, schema["items"]]}


class ModelOptimizationConfig(Document):
    """A family's optimizations; those with `enabled` are the ones it uses by default.

    A member of `optimizations` is a name, or a mapping with its own switch, parameters, priority and dependencies. What
    `defaults`, `priorities` and `dependencies` say of a name is joined with that: see `members`.

    >>> config = ModelOptimizationConfig(
    ...     family="glm", optimizations=["flash_attention"], priorities={"flash_attention": 10})
    >>> config.enabled[0].name, config.enabled[0].priority
    ('flash_attention', 10)
    """

    family: ModelFamily = Field(description="The family's name: glm, qwen, llama, mistral, other or a new one.")
    description: str = Field(default="", description="Which models these are, in a sentence.")
    optimizations: tuple[OptimizationConfig, ...] = Field(
        default=(), json_schema_extra=_members_may_be_names,
        description="The family's optimizations, each a name or a mapping.",
    )  # fmt: skip
    defaults: dict[str, dict[str, Any]] = Field(default_factory=dict, description="Parameters by optimization.")
    priorities: dict[str, int] = Field(default_factory=dict, description="Priorities by optimization, lower first.")
    dependencies: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="For an optimization, the names of those that it needs."
    )
    variants: dict[str, FamilyVariant] = Field(
        default_factory=dict, description="What single kinds of models do otherwise, by their `config.model_type`."
    )

    @field_validator("optimizations", mode="before")
    @classmethod
    def _from_plain_data(cls, given: object) -> object:
        if not isinstance(given, list | tuple):
            return given
        return tuple(read_member(member, f"optimizations.{place}") for place, member in enumerate(given))

    @field_validator("optimizations")
    @classmethod
    def _each_once(cls, members: tuple[OptimizationConfig, ...]) -> tuple[OptimizationConfig, ...]:
        names = [member.name for member in members]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{', '.join(twice)} is given twice")
        return members

    _lists_of_names = field_validator("dependencies", mode="before")(as_tuples)

    @field_validator("variants", mode="before")
    @classmethod
    def _variants_from_plain_data(cls, given: object) -> object:
        if not isinstance(given, dict):
            return given
        return {kind: _variant(variant, f"variants.{kind}") for kind, variant in given.items()}

    @model_validator(mode="after")
    def _speaks_of_its_own(self) -> Self:
        """Every name that is spoken of must be listed, and nothing may be said twice in different words."""
        self._check_names(self, "")
        for kind, variant in self.variants.items():
            self._check_names(variant, f"variants.{kind}.")
            _check_listed(variant.optimizations or (), self._names, f"variants.{kind}.optimizations")
        for member in self.optimizations:
            check_said_once(member, self.defaults.get(member.name, {}), self.priorities.get(member.name))
        return self

    def _check_names(self, speaker: ModelOptimizationConfig | FamilyVariant, place: str) -> None:
        for key in ("defaults", "priorities", "dependencies"):
            _check_listed(getattr(speaker, key), self._names, f"{place}{key}")

    # ------------------------------------------------------------------ what it says

    @property
    def _names(self) -> tuple[str, ...]:
        return tuple(member.name for member in self.optimizations)

    @property
    def members(self) -> tuple[OptimizationConfig, ...]:
        """Each optimization with all that is said of it joined."""
        return tuple(joined(member, self) for member in self.optimizations)

    @property
    def enabled(self) -> tuple[OptimizationConfig, ...]:
        return tuple(member for member in self.members if member.enabled)

    def member(self, name: str) -> OptimizationConfig | None:
        """What this family says of one optimization, or None where it says nothing."""
        return next((member for member in self.members if member.name == name), None)

    def for_model_type(self, model_type: str | None) -> ModelOptimizationConfig:
        """What holds for models of one `config.model_type`: the config itself where no variant is of that name.

        What the variant leaves out of its `optimizations` is not spoken of any more, but what the family switches off
        stays off.
        """
        variant = self.variants.get(model_type) if isinstance(model_type, str) else None
        if variant is None:
            return self
        listed = self._names if variant.optimizations is None else variant.optimizations
        own = {member.name: member for member in self.members}
        off = [name for name, member in own.items() if not member.enabled and name not in listed]
        switched = {} if variant.optimizations is None else {"enabled": True}
        members = [joined(own[name].model_copy(update=switched), variant, over=True) for name in listed]
        return ModelOptimizationConfig(
            family=self.family, description=variant.description or self.description,
            optimizations=(*members, *(own[name] for name in off)),
        )  # fmt: skip


def _variant(given: object, place: str) -> object:
    return FamilyVariant.read(given, place) if given is None or isinstance(given, dict) else given


def _check_listed(spoken_of: Iterable[str], listed: tuple[str, ...], place: str) -> None:
    for name in spoken_of:
        if name not in listed:
            raise UnknownName("optimization", name, listed, where=f"in {place}, which is not in optimizations")
