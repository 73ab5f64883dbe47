"""Has something become slower? Fresh results against recorded ones, by figures that hold across hosts."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.results import Results

MOST_FALL = 0.20


def figures(found: Results) -> dict[str, float]:
    """Of each right system of ours: the share of the ceiling where there is one, else the ratio to the baseline.

    The library's own speed on a GPU depends on the host's CPU; a share of what the device can do does not.
    """
    told: dict[str, float] = {}
    base = found["arms"].get(found["baseline"], {}).get("cases", {})
    for arm, row in found["arms"].items():
        if not arm.startswith("pio"):
            continue
        for case, value in row["cases"].items():
            if found["device"].startswith("cpu"):
                if case in base and value["unit"] != "s":
                    told[f"{arm}, {case}: ratio to {found['baseline']}"] = value["median"] / base[case]["median"]
            elif "share" in value:
                told[f"{arm}, {case}: share of {value['share']['of']}"] = value["share"]["value"]
    return told


def falls(fresh: Results, recorded: Results) -> list[str]:
    """A line for each figure that fell by more than a fifth, and for each system that is right no more."""
    lines = [
        f"{arm}: {fresh['arms'][arm]['status']}, was ok: {fresh['arms'][arm]['reason']}"
        for arm, row in recorded["arms"].items()
        if row["status"] == "ok" and arm in fresh["arms"] and fresh["arms"][arm]["status"] != "ok"
    ]
    return lines + fallen(figures(fresh), figures(recorded))


def fallen(now: Mapping[str, float], before: Mapping[str, float]) -> list[str]:
    """
    >>> fallen({"a": 0.7, "b": 0.9}, {"a": 1.0, "b": 1.0})
    ['a fell from 1.000 to 0.700 (-30%)']
    """
    return [
        f"{name} fell from {old:.3f} to {now[name]:.3f} ({now[name] / old - 1:+.0%})"
        for name, old in before.items()
        if name in now and not now[name] >= old * (1 - MOST_FALL)
    ]
