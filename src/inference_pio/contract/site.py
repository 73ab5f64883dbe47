"""A site: one place an optimization can act on, or passes over with a reason."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Site:
    """A module (by path) and its role; `skip` says why it is passed over.

    `claims` are what only one optimization may own there. `whole` says that the result depends on all below the
    path, not only on the module itself. `nbytes` counts the weights that the site covers.
    """

    path: str
    role: str = "unknown"
    claims: frozenset[str] = frozenset()
    skip: str | None = None
    whole: bool = True
    nbytes: int = 0

    @property
    def acts(self) -> bool:
        return self.skip is None

    def to_json(self) -> dict[str, Any]:
        """The site as plain data, without what is empty."""
        data = {**asdict(self), "claims": sorted(self.claims)}
        return {key: value for key, value in data.items() if key in ("path", "role") or value not in (None, 0, [])}


@dataclass(frozen=True)
class Skips:
    """Sites passed over for one reason."""

    reason: str
    paths: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {"reason": self.reason, "count": len(self.paths), "paths": list(self.paths)}


def skips_by_reason(sites: list[Site] | tuple[Site, ...]) -> tuple[Skips, ...]:
    """The skipped sites, gathered by reason in the order met.

    >>> [skips.reason for skips in skips_by_reason((Site("a", skip="tied"), Site("b"), Site("c", skip="tied")))]
    ['tied']
    """
    groups: dict[str, list[str]] = {}
    for site in sites:
        if site.skip is not None:
            groups.setdefault(site.skip, []).append(site.path)
    return tuple(Skips(reason, tuple(paths)) for reason, paths in groups.items())
