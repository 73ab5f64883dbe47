"""A receipt: what a step did to a model, what it passed over, and what that cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from inference_pio.contract.site import Site, skips_by_reason


@dataclass(frozen=True)
class Receipt:
    """What one step did. Bytes are of the whole model; `held_bytes` is memory kept for undo, `parked_bytes` disk."""

    name: str
    type: str
    stage: str
    parameters: dict[str, Any]
    sites: tuple[Site, ...]
    decision: dict[str, Any]
    backend: str | None
    seconds: float
    weight_bytes_before: int
    weight_bytes_after: int
    held_bytes: int
    parked_bytes: int
    originals: str
    reversible: bool = True
    changes_state_dict: bool = False
    notes: tuple[str, ...] = field(default=())

    @property
    def acted(self) -> tuple[Site, ...]:
        return tuple(site for site in self.sites if site.acts)

    def to_json(self) -> dict[str, Any]:
        """Plain data for reports and files."""
        return {
            "name": self.name, "type": self.type, "stage": self.stage, "parameters": self.parameters,
            "sites": [site.path for site in self.acted], "site_count": len(self.acted),
            "skipped": [skips.to_json() for skips in skips_by_reason(self.sites)],
            "decision": self.decision, "backend": self.backend, "seconds": round(self.seconds, 6),
            "weight_bytes_before": self.weight_bytes_before, "weight_bytes_after": self.weight_bytes_after,
            "held_bytes": self.held_bytes, "parked_bytes": self.parked_bytes,
            "originals": self.originals, "reversible": self.reversible,
            "changes_state_dict": self.changes_state_dict, "notes": list(self.notes),
        }  # fmt: skip

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Receipt:
        """A receipt read back; it speaks of a step that cannot be taken back any more."""
        plain = {key: data[key] for key in cls.__dataclass_fields__ if key in data}
        sites = tuple(Site(path) for path in data["sites"])
        skipped = tuple(Site(path, skip=skips["reason"]) for skips in data["skipped"] for path in skips["paths"])
        return cls(**{**plain, "sites": sites + skipped, "notes": tuple(data["notes"]), "reversible": False})

    def __str__(self) -> str:
        saved = self.weight_bytes_before - self.weight_bytes_after
        change = f", weights {saved / 1e6:+.1f} MB saved" if saved else ""
        backend = f", backend {self.backend}" if self.backend else ""
        return f"{self.name}: {len(self.acted)} sites{backend}{change}, {self.seconds:.2f} s"
