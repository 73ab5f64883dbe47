"""A suite as a drawing: horizontal bars of medians with their spread, as plain SVG; no plotting package is needed."""

from __future__ import annotations

from html import escape

from benchmarks.results import Results

CASES = {"decode": "decode", "load": "load", "score": "batches"}
"""By kind of suite, what is drawn; of others it is their largest size."""
WIDTH, LABELS, BAR, GAP, TOP = 860, 330, 18, 8, 56
OURS, PEERS, INK = "#1f6feb", "#9aa4b2", "#57606a"


def draw(found: Results) -> str:
    """Decode: tokens per second of each system; load: GB. Else: the largest size that the baseline served."""
    case = CASES.get(found["kind"]) or _longest(found)
    rows = [(name, arm["label"], arm["cases"][case]) for name, arm in found["arms"].items() if case in arm["cases"]]
    rows.sort(key=lambda row: -row[2]["median"])
    height = TOP + len(rows) * (BAR + GAP) + 12
    most = max((row["high"] for _, _, row in rows), default=1.0)
    scale = (WIDTH - LABELS - 110) / most
    size = f"{case} tokens" if case.isdecimal() else case
    title = found["title"] if case in CASES.values() else f"{found['title']}: {size}"
    unit = rows[0][2]["unit"] if rows else ""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        f'font-size="13" role="img"><title>{escape(title)}</title><rect width="100%" height="100%" fill="white"/>',
        f'<text x="8" y="22" font-size="15" font-weight="bold">{escape(title)}</text>',
        f'<text x="8" y="42" fill="{INK}">{escape(found["device"])}, {unit}, medians; the line spans all rounds</text>',
    ]
    for number, (name, label, row) in enumerate(rows):
        parts += _bar(TOP + number * (BAR + GAP), name, label, row, scale)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _bar(top: float, name: str, label: str, row: dict[str, float], scale: float) -> list[str]:
    middle, colour = top + BAR / 2, OURS if name.startswith("pio") else PEERS
    low, high, end = (LABELS + row[key] * scale for key in ("low", "high", "median"))
    return [
        f'<text x="{LABELS - 8}" y="{middle + 5:.1f}" text-anchor="end">{escape(label)}</text>',
        f'<rect x="{LABELS}" y="{top}" width="{end - LABELS:.1f}" height="{BAR}" fill="{colour}"/>',
        f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{middle}" y2="{middle}" stroke="{INK}" stroke-width="2"/>',
        f'<text x="{max(high, end) + 6:.1f}" y="{middle + 5:.1f}">{row["median"]:,.4g}</text>',
    ]


def _longest(found: Results) -> str:
    served = {case for arm in found["arms"].values() for case in arm["cases"]}
    base = found["arms"].get(found["baseline"], {}).get("cases") or served
    return max(base, key=lambda case: (int(case) if case.isdecimal() else 0, case), default="")
