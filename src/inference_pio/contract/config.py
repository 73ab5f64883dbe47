"""`OptimizationConfig`: one optimization's name, switch, priority, dependencies and parameters."""

from __future__ import annotations

from enum import Enum
from typing import Any

from pydantic import ConfigDict, Field, field_validator

from inference_pio.contract.settings import Settings


class OptimizationType(Enum):
    """What kind of thing an optimization changes."""

    ATTENTION = "attention"
    MEMORY = "memory"
    COMPUTE = "compute"
    MODEL_STRUCTURE = "model_structure"


class OptimizationConfig(Settings):
    """How one optimization is to be used.

    `priority` orders within a stage, lower first; `parameters` are the optimization's own settings.

    >>> OptimizationConfig(name="flash_attention", parameters={"use_triton": True}).enabled
    True
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)  # names of types and lists come from files

    name: str = Field(min_length=1)
    enabled: bool = True
    optimization_type: OptimizationType | None = None
    priority: int = 100
    dependencies: tuple[str, ...] = ()
    parameters: dict[str, Any] = Field(default_factory=dict)

    @field_validator("enabled", "priority", mode="before")
    @classmethod
    def _no_guessing(cls, value: object, info: Any) -> object:
        wanted = bool if info.field_name == "enabled" else int
        if type(value) is not wanted:
            raise ValueError(f"must be {'true or false' if wanted is bool else 'a whole number'}")
        return value
