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
    judged = quality_guard_lines(status.get("quality_guard"))
    counters = status.get("counters")
    counted = [(f"counted: {name}", text) for name, text in settings(counters)] if isinstance(counters, Mapping) else []
    return [*plain, *left, *judged, *sizes, *counted]


def quality_guard_lines(verdict: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """What a quality guard measured, and what each step costs, one line each; none where there was no guard."""
    if not verdict:
        return []
    bounds = ", ".join(f"{name} {most:g}" for name, most in verdict["bounds"].items())
    whole = _answers(verdict["kl_nats_per_token"], verdict["perplexity_ratio"])
    before = f"; with all steps {_answers(verdict['kl_before'], verdict['perplexity_ratio_before'])}"
    told = f"{whole} on {verdict['tokens']} tokens of {verdict['source']}; allowed: {bounds}"
    return [
        ("quality guard", told + (before if verdict["taken_back"] else "")),
        *((f"cost: {one['name']}", _cost(one, verdict["taken_back"])) for one in verdict["costs"]),
    ]


def _answers(kl: float | str, ratio: float | str) -> str:
    return f"KL {float(kl):.2g} nats/token, perplexity ratio {float(ratio):.4f}"  # JSON holds infinities as words


def _cost(one: Mapping[str, Any], taken_back: Mapping[str, str]) -> str:
    saved = one["weight_bytes_saved"]
    told = f"KL {float(one['kl_bought']):.2g} nats/token, perplexity ratio {float(one['perplexity_ratio_bought']):+.4f}"
    return told + (f", saves {size(saved)}" if saved else "") + (", taken back" if one["name"] in taken_back else "")


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(str(one.get("name") if isinstance(one, Mapping) else one) for one in value) or "none"
    return "none" if value is None else str(value)
