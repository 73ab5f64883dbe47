"""The plan: what would be done to a model, step by step, frozen and printable; nothing is touched to make it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from inference_pio.contract.site import Site, skips_by_reason
from inference_pio.undo.frame import Frame


@dataclass(frozen=True)
class PlannedStep:
    """One step: where it acts, what it passes over, what it would choose; `action` is apply, keep or replay."""

    name: str
    type: str
    stage: str
    priority: int
    source: str
    parameters: dict[str, Any]
    sites: tuple[Site, ...]
    decision: dict[str, Any]
    backend: str | None
    weight_bytes_after: int
    notes: tuple[str, ...]
    action: str = "apply"
    frame: Frame = field(default_factory=lambda: Frame(""), repr=False, compare=False)

    @property
    def acting(self) -> tuple[Site, ...]:
        return tuple(site for site in self.sites if site.acts)

    @property
    def signature(self) -> tuple[Any, ...]:
        """What makes two plans of a step the same: then a step that stands already is not touched."""
        return repr(sorted(self.parameters.items())), tuple(site.path for site in self.acting), repr(self.decision)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name, "action": self.action, "type": self.type, "stage": self.stage,
            "priority": self.priority, "source": self.source, "parameters": self.parameters,
            "sites": [site.to_json() for site in self.acting], "site_count": len(self.acting),
            "skipped": [skips.to_json() for skips in skips_by_reason(self.sites)],
            "decision": self.decision, "backend": self.backend,
            "weight_bytes_after": self.weight_bytes_after, "notes": list(self.notes),
        }  # fmt: skip


@dataclass(frozen=True)
class Left:
    """A member of the target set that is not applied, with the reason."""

    name: str
    reason: str
    source: str

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "reason": self.reason, "source": self.source}


@dataclass(frozen=True)
class Plan:
    """Ordered steps with sites, skips with reasons, removals, notes and the predicted weight bytes."""

    model: str
    profile: str | None
    steps: tuple[PlannedStep, ...]
    left: tuple[Left, ...]
    removed: tuple[str, ...]
    notes: tuple[str, ...]
    weight_bytes_before: int
    hardware: str | None = None
    """The class of hardware that a profile's members were chosen for, and what told it."""

    @property
    def weight_bytes_after(self) -> int:
        return self.steps[-1].weight_bytes_after if self.steps else self.weight_bytes_before

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model, "profile": self.profile, "hardware": self.hardware,
            "steps": [step.to_json() for step in self.steps],
            "skipped": [left.to_json() for left in self.left], "removed": list(self.removed),
            "notes": list(self.notes), "weight_bytes_before": self.weight_bytes_before,
            "weight_bytes_after": self.weight_bytes_after,
        }  # fmt: skip

    def __str__(self) -> str:
        lines = [f"plan for {self.model}" + (f", profile {self.profile}" if self.profile else "")]
        if self.hardware:
            lines.append(f"  for the hardware class {self.hardware}")
        for number, step in enumerate(self.steps, 1):
            lines.append(f"  {number}. {step.action} {step.name} [{step.stage}] on {len(step.acting)} sites")
            if step.parameters:
                lines.append("     " + ", ".join(f"{key}={value}" for key, value in step.parameters.items()))
            lines += [f"     skips {len(skips.paths)}: {skips.reason}" for skips in skips_by_reason(step.sites)]
            lines += [f"     note: {note}" for note in step.notes]
        lines += [f"  - {left.name} is left out: {left.reason}" for left in self.left]
        lines += [f"  - {name} is taken back" for name in self.removed]
        lines += [f"  note: {note}" for note in self.notes]
        before, after = self.weight_bytes_before / 1e6, self.weight_bytes_after / 1e6
        lines.append(f"  weights {before:.1f} MB -> {after:.1f} MB (predicted)")
        return "\n".join(lines)
