"""What a reader wants to know first: gains and losses in one sentence and in a few large figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inference_pio.measure.html.change import Change, change_of
from inference_pio.measure.html.columns import Column
from inference_pio.measure.html.quantities import DECODE, PREFILL, RESIDENT, Quantity, pair
from inference_pio.measure.html.words import figure, number, size

_VERBS = {DECODE.key: "decodes {}", PREFILL.key: "prefills {}", RESIDENT.key: "takes {} memory"}


@dataclass(frozen=True)
class Card:
    """One large figure: its title, the figure, what it means, and what stands behind it."""

    title: str
    figure: str
    meaning: str
    kind: str
    below: tuple[str, ...]


def cards(comparison: Mapping[str, Any], columns: Sequence[Column]) -> list[Card]:
    """Decode, prefill, memory and, where it was measured, the quality: in this order whatever they say."""
    speeds = [_card(quantity, comparison, columns) for quantity in (DECODE, PREFILL, RESIDENT)]
    return [card for card in (*speeds, _agreement(comparison)) if card]


def sentence(comparison: Mapping[str, Any], columns: Sequence[Column]) -> str:
    """The gains and losses in words."""
    told = [(quantity, change_of(quantity, comparison)) for quantity in (DECODE, PREFILL, RESIDENT)]
    parts = [_VERBS[quantity.key].format(_hedged(change)) for quantity, change in told if change]
    base = next((column.name for column in columns if column.series == "base"), "the baseline")
    text = f"Beside {base}, the optimized model {_listed(parts)}." if parts else ""
    agreement = number(comparison.get("top1_agreement"))
    return text + (f" It picks the same next token {agreement:.1%} of the time." if agreement is not None else "")


def versus(quantity: Quantity, change: Change, columns: Sequence[Column]) -> Column | None:
    """The model that a ratio is against: the baseline, or for decode the faster plain one."""
    optimized = next((quantity.value(one.measured) for one in columns if one.series == "s0"), None)
    plain = [one for one in columns if one.series in ("base", "beside")]
    known = [(one, quantity.value(one.measured)) for one in reversed(plain)]  # the baseline first: it wins a tie
    off = [(abs(optimized / value - change.ratio), one) for one, value in known if value and optimized is not None]
    return min(off, key=lambda pair: pair[0])[1] if off else None


def _card(quantity: Quantity, comparison: Mapping[str, Any], columns: Sequence[Column]) -> Card | None:
    change = change_of(quantity, comparison)
    if change is None:
        return None
    against = versus(quantity, change, columns)
    optimized = next((quantity.value(one.measured) for one in columns if one.series == "s0"), None)
    below = []
    if against and optimized is not None:
        below.append(f"{quantity.form(quantity.value(against.measured) or 0.0)} → {quantity.text(optimized)}")
    if change.range:
        below.append(f"{change.range} over the rounds" if change.sure else f"may be none: {change.range}")
    if against:
        below.append(f"against {against.name}")
    return Card(quantity.title, change.times, change.text, change.kind, tuple(below))


def _agreement(comparison: Mapping[str, Any]) -> Card | None:
    agreement, kl = number(comparison.get("top1_agreement")), number(comparison.get("kl_nats_per_token"))
    if agreement is None:
        return None
    ends = pair((comparison.get("intervals") or {}).get("top1_agreement"))
    below = [f"{ends[0]:.1%}–{ends[1]:.1%}, 95% interval"] if ends else []
    return Card(
        "Same next token", f"{agreement:.1%}", "as the original", "same",
        (*below, *([f"KL {figure(kl, 2)} nats/token"] if kl is not None else [])),
    )  # fmt: skip


def _hedged(change: Change) -> str:
    if change.text == "the same":
        return "as before" if change.title != RESIDENT.title else "the same"
    return change.text + ("" if change.sure else " (the rounds leave it open)")


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def memory_line(measured: Mapping[str, Any]) -> str:
    """How a peak was read, which says what it counts."""
    peak = (measured.get("details") or {}).get("peak") or {}
    rise = number(peak.get("rise_bytes"))
    return f"{peak['method']}; {size(rise)} above its start" if peak.get("method") and rise is not None else ""
