"""What stands on the model now, as `get_model_optimization_status` tells it: the page and the terminal say the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inference_pio.measure.html.words import number, settings, size


def standing_of(status: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """A status as names and texts, one line a fact.

    >>> standing_of({"model_id": "demo", "model_family": "llama", "held_bytes": 0, "applied_optimizations": []})
    [('model id', 'demo'), ('model family', 'llama'), ('applied optimizations', 'none'), ('held bytes', '0 B')]
    """
    status = status or {}
    shown = ("model_id", "model_family", "profile", "applied_optimizations", "total_optimizations_available")
    plain = [(name.replace("_", " "), _text(status[name])) for name in shown if name in status]
    sizes = [
        (name.replace("_", " "), size(number(value) or 0.0))
        for name, value in status.items()
        if name.endswith("_bytes")
    ]
    left = [(f"left out: {one.get('name')}", str(one.get("reason"))) for one in status.get("skipped") or ()]
    counters = status.get("counters")
    counted = [(f"counted: {name}", text) for name, text in settings(counters)] if isinstance(counters, Mapping) else []
    return [*plain, *left, *sizes, *counted]


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(str(one.get("name") if isinstance(one, Mapping) else one) for one in value) or "none"
    return "none" if value is None else str(value)
