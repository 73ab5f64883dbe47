"""The members of a legacy configuration in one shape, before the registry is asked about them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Given:
    """One value of a parameter: where it stood, what stood there, the names it may have today, and what it is today."""

    place: str
    value: Any
    names: tuple[str, ...]
    today: Any


@dataclass
class Member:
    """One optimization as a legacy configuration asked for it; `places` says where it was switched, and to what."""

    name: str
    enabled: bool
    places: dict[str, bool] = field(default_factory=dict)
    given: list[Given] = field(default_factory=list)
    priority: int | None = None
    dependencies: tuple[str, ...] = ()
    optimization_type: str | None = None


def word(value: object) -> str:
    """A value as a file holds it.

    >>> word(True), word("a")
    ('true', "'a'")
    """
    return str(value).lower() if isinstance(value, bool) else repr(value)
