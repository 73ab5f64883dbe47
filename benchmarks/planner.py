"""How long suites take, by prediction, and how they fall into slices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.suites import Suite

CALL_S = 25
"""Of each call: the first import on a machine, and the ceilings."""


def told(asked: Iterable[tuple[Suite, Sequence[str] | None]], slice_s: float) -> str:
    """A line a system; systems side by side share what their set-ups overlap, so a sum is the most it can be."""
    lines, rows = [], []
    for suite, arms in asked:
        known = {**suite.arms, **suite.optional}
        chosen = {arm: known[arm] for arm in (arms or suite.arms) if arm in known}
        rows += [(suite.name, arm, seconds) for arm, seconds in chosen.items()]
        lines.append(f"{suite.name}: {sum(chosen.values()):.0f} s, {suite.gigabytes:g} GB each")
        lines += [f"  {arm:<28}{seconds:5.0f} s" for arm, seconds in chosen.items()]
        lines += [f"  {arm:<28}{seconds:5.0f} s, when named" for arm, seconds in suite.optional.items() if not arms]
    lines.append(f"in all {sum(seconds for _, _, seconds in rows):.0f} s, and {CALL_S} s for each call")
    for number, part in enumerate(slices(rows, slice_s - CALL_S), 1):
        names = dict.fromkeys(suite for suite, _, _ in part)
        spent = sum(seconds for _, _, seconds in part)
        lines.append(f"slice {number}, {spent + CALL_S:.0f} s: " + "; ".join(
            f"{name} ({', '.join(arm for suite, arm, _ in part if suite == name)})" for name in names
        ))  # fmt: skip
    return "\n".join(lines)


def slices(rows: Sequence[tuple[str, str, float]], slice_s: float) -> list[list[tuple[str, str, float]]]:
    """In the order given, a new slice where the next system no longer fits.

    >>> slices([("a", "x", 50), ("a", "y", 40), ("b", "x", 30)], 100)
    [[('a', 'x', 50), ('a', 'y', 40)], [('b', 'x', 30)]]
    """
    found: list[list[tuple[str, str, float]]] = []
    for row in rows:
        if not found or sum(seconds for _, _, seconds in found[-1]) + row[2] > slice_s:
            found.append([])
        found[-1].append(row)
    return found
