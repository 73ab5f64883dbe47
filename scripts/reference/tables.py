"""What the cards of all models say, side by side: the two tables of docs/reference-models.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

MARKS = ("<!-- from the cards -->", "<!-- end -->")


def tables(cards: Mapping[str, Mapping[str, Any]]) -> str:
    """Both tables as markdown."""
    return "\n".join([*_overview(cards), "", *_baselines(cards)])


def _overview(cards: Mapping[str, Mapping[str, Any]]) -> list[str]:
    rows = [
        "| model | held-out perplexity | bits per byte | train/held-out gap, nats | needles at 4096, 8192 "
        "| blocks that hold 95% of attention at 8192 | steps |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, card in cards.items():
        text, found = card["text"], card["needles_in_text"]
        shares = ", ".join(f"{np.mean(list(found[length].values())):.3f}" for length in ("4096", "8192"))
        rows.append(
            f"| `{name}` | {text['held_out_perplexity']:.2f} | {text['bits_per_byte']:.3f} | {text['gap_nats']:.2f} "
            f"| {shares} | {card['blocks_for_95_percent']['mean']:.1%} | {card['training']['steps']} |"
        )
    return rows


def _baselines(cards: Mapping[str, Mapping[str, Any]]) -> list[str]:
    methods = dict.fromkeys(method for card in cards.values() for method in card["baselines"])
    rows = [f"| KL, perplexity ratio, top-1 | {' | '.join(f'`{name}`' for name in cards)} |"]
    rows.append("|---" * (len(cards) + 1) + "|")
    for method in methods:
        cells = (_cell(card["baselines"].get(method)) for card in cards.values())
        rows.append(f"| {method} | {' | '.join(cells)} |")
    return rows


def _cell(figures: Mapping[str, list[float]] | None) -> str:
    """The worst draw of each figure."""
    if figures is None:
        return ""
    return f"{max(figures['kl_nats']):.2g}, {max(figures['perplexity_ratio']):.4g}, {min(figures['top1']):.3f}"
