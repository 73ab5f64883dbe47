"""What was measured by hand on an H100 before this harness existed: its rows must come within 15%, or be explained."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.results import Results

DEVICE = "H100"
MOST_APART = 0.15
MEASURED: Mapping[str, Mapping[str, Mapping[str, float]]] = {
    "decode-qwen3-4b": {
        "plain": {"decode": 31.8}, "static-compile": {"decode": 154}, "graph-eager": {"decode": 112},
        "graph-inductor": {"decode": 190}, "graph-inductor-tuned": {"decode": 218}, "plain-no-cudnn": {"decode": 32},
        "plain-flash-only": {"decode": 24.4}, "torchao-int8-tuned": {"decode": 215},
    },
    "decode-qwen3-30b-a3b": {
        "plain": {"decode": 14.0}, "plain-batched-mm": {"decode": 9.4}, "plain-eager-experts": {"decode": 5.1},
        "graph-inductor": {"decode": 133}, "graph-inductor-batched-mm": {"decode": 116},
    },
    "decode-qwen3-vl-2b": {"plain": {"decode": 34.4}, "static-compile": {"decode": 289}},
    "decode-glm-4.7-flash": {"plain": {"decode": 11.7}},
    "prefill-qwen3-4b": {
        "plain": {"8192": 8192 / 0.203, "32768": 32768 / 1.186},
        "flash-only": {"8192": 8192 / 0.232, "32768": 32768 / 1.600},
    },
    "attention": {
        "cudnn": {"8192": 595, "32768": 677, "131072": 567}, "flash": {"8192": 317, "32768": 359, "131072": 338},
        "flex": {"8192": 344, "32768": 433, "131072": 414},
    },
    "offload-qwen3-4b": {"cpu-offload": {"decode": 1 / 1.56}, "disk-offload": {"decode": 1 / 2.08}},
}  # fmt: skip


def told(found: Results) -> list[str]:
    """A line for each row that was measured before on this kind of device."""
    if DEVICE not in found["device"]:
        return []
    lines = []
    for arm, cases in MEASURED.get(found["suite"], {}).items():
        for case, before in cases.items():
            row = found["arms"].get(arm, {}).get("cases", {}).get(case)
            if row:
                apart = row["median"] / before - 1
                word = "" if abs(apart) <= MOST_APART else ": EXPLAIN THIS"
                lines.append(
                    f"  {arm}, {case}: {row['median']:.4g} {row['unit']}, before {before:.4g} ({apart:+.0%}){word}"
                )
    return lines
