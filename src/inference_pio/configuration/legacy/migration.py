"""What became of a legacy configuration: the new document, what changed, and what has no counterpart."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from inference_pio.configuration.family_config import ModelOptimizationConfig
from inference_pio.configuration.writing import as_yaml


@dataclass(frozen=True)
class Change:
    """One thing that is said otherwise now; `new` tells in words where there is nothing to be written."""

    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.old} -> {self.new}"


@dataclass(frozen=True)
class Unmatched:
    """One thing that has no counterpart here, and so no effect."""

    key: str
    value: Any
    reason: str

    def __str__(self) -> str:
        return f"{self.key} = {self.value!r}: {self.reason}"


@dataclass(frozen=True)
class Migration:
    """A family config's document in today's form, with the account of how it came about."""

    document: dict[str, Any]
    changes: tuple[Change, ...] = ()
    unmatched: tuple[Unmatched, ...] = ()

    @property
    def config(self) -> ModelOptimizationConfig:
        """The document as settings."""
        return ModelOptimizationConfig.read(self.document, "the migrated configuration")

    @property
    def yaml(self) -> str:
        """The document as a file holds it."""
        return as_yaml(self.document)

    @property
    def call(self) -> str:
        """The document as a line of Python."""
        return f"ModelOptimizationConfig({', '.join(f'{key}={value!r}' for key, value in self.document.items())})"

    @property
    def not_carried_over(self) -> str:
        """The unmatched ones in a sentence; empty where there is none."""
        told = "; ".join(map(str, self.unmatched))
        return f"Not carried over: {told}." if told else ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"changed: {change}" for change in self.changes]
        return "\n".join([*lines, *(f"not carried over: {one}" for one in self.unmatched)])
