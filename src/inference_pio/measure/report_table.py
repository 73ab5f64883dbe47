"""The table of a report: every quantity with its spread, and every ratio in words, a loss as plainly as a gain."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from inference_pio.measure.comparison import Comparison
from inference_pio.measure.measurement import Measurement

ABSENT = "not measured"


@dataclass(frozen=True)
class Row:
    """One quantity: how a model's cell reads, and which ratio stands at its end, in which words."""

    label: str
    cell: Callable[[Measurement], str]
    ratio: str | None
    words: tuple[str, str]


def report_table(title: str, columns: Mapping[str, Measurement], comparison: Comparison | None) -> Table:
    """One row per quantity, one column per model, and the ratio of the last two where they were compared."""
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right")
    if comparison:
        table.add_column("ratio", justify="right")
    for row in ROWS if columns else ():
        ratio = [ratio_cell(comparison, row)] if comparison else []
        table.add_row(row.label, *(row.cell(measured) for measured in columns.values()), *ratio)
    if comparison and comparison.kl_nats_per_token is not None:
        for label, text in against_original(comparison):
            table.add_row(label, *[""] * (len(columns) - 1), text, "")
    return table


def ratio_in_words(ratio: float, words: tuple[str, str], digits: int = 2) -> str:
    """The ratio and the change in percent, in the words for more and for less.

    >>> ratio_in_words(1.42, ("faster", "slower")), ratio_in_words(0.7, ("faster", "slower"))
    ('1.42x, 42% faster', '0.70x, 30% slower')
    """
    return f"{ratio:.{digits}f}x, {change_in_words(ratio, words, digits)}"


def change_in_words(ratio: float, words: tuple[str, str], digits: int = 2) -> str:
    """The change in percent, in the words for more and for less; two digits fewer than the ratio has.

    >>> change_in_words(1.42, ("faster", "slower")), change_in_words(1.001, ("faster", "slower"))
    ('42% faster', 'the same')
    """
    percent = abs(ratio - 1) * 100
    shown = f"{percent:.0f}" if digits == 2 else f"{percent:.{digits - 2}f}"
    return "the same" if float(shown) == 0 else f"{shown}% {words[0] if ratio > 1 else words[1]}"


def ratio_cell(comparison: Comparison, row: Row) -> str:
    if row.ratio is None:
        return ""
    ratio = getattr(comparison, row.ratio)
    if ratio is None:
        return ABSENT
    digits = 4 if row.ratio == "perplexity_ratio" else 2
    interval = comparison.intervals.get(row.ratio)
    spread = f"\n({interval[0]:.{digits}f}–{interval[1]:.{digits}f})" if interval else ""
    return ratio_in_words(ratio, row.words, digits) + spread


def against_original(comparison: Comparison) -> list[tuple[str, str]]:
    kl, agreement, greedy = comparison.kl_nats_per_token, comparison.top1_agreement, comparison.greedy_agreement
    rows = [
        ("KL from the original, nats/token", f"{kl:.2g}{_interval(comparison, 'kl_nats_per_token', '.2g')}"),
        ("top-1 agreement with the original", f"{agreement:.2%}{_interval(comparison, 'top1_agreement', '.2%')}"),
    ]
    if greedy is not None:
        told = f"{greedy:.0%}{_interval(comparison, 'greedy_agreement', '.0%')}"
        rows.append(("greedy text before it first differs", told))
    return rows


def _interval(comparison: Comparison, name: str, form: str) -> str:
    interval = comparison.intervals.get(name)
    return f"\n({interval[0]:{form}}–{interval[1]:{form}})" if interval else ""


def _speed_cell(quantity: str, form: str, scale: float = 1.0) -> Callable[[Measurement], str]:
    def cell(measured: Measurement) -> str:
        value = f"{getattr(measured, quantity) * scale:{form}}"
        spread = measured.details.get("speed", {}).get(quantity)
        return f"{value}\n({spread['low'] * scale:{form}}–{spread['high'] * scale:{form}})" if spread else value

    return cell


def _setup_cell(measured: Measurement) -> str:
    speed = measured.details.get("speed")
    return f"{speed['setup_s']:.1f}" if speed else ABSENT


def _bytes_cell(quantity: str) -> Callable[[Measurement], str]:
    return lambda measured: f"{getattr(measured, quantity) / 1e6:,.1f} MB"


def _perplexity_cell(measured: Measurement) -> str:
    if measured.perplexity is None:
        return ABSENT
    low_high: Any = (measured.details.get("quality") or {}).get("perplexity_interval")
    return f"{measured.perplexity:.3f}" + (f"\n({low_high[0]:.2f}–{low_high[1]:.2f})" if low_high else "")


_SPEED, _TIME, _SIZE, _LEVEL = ("faster", "slower"), ("longer", "shorter"), ("more", "less"), ("higher", "lower")
ROWS: Sequence[Row] = (
    Row("decode, tokens/s", _speed_cell("decode_tokens_per_s", ".1f"), "decode_speedup", _SPEED),
    Row("prefill, tokens/s", _speed_cell("prefill_tokens_per_s", ".0f"), "prefill_ratio", _SPEED),
    Row(
        "time to first token, ms", _speed_cell("time_to_first_token_s", ".1f", 1e3), "time_to_first_token_ratio", _TIME
    ),
    Row("set-up in the first call, s", _setup_cell, None, _TIME),
    Row("weights", _bytes_cell("weight_bytes"), "weight_bytes_ratio", _SIZE),
    Row("resident: weights + held", _bytes_cell("resident_bytes"), "resident_bytes_ratio", _SIZE),
    Row("peak of the process", _bytes_cell("peak_bytes"), "peak_bytes_ratio", _SIZE),
    Row("perplexity", _perplexity_cell, "perplexity_ratio", _LEVEL),
)
