"""The table with which README opens: a line a promise, each from a recorded result and its baseline of one suite."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.results import Results

H100, CPU = "one H100", "2 CPU cores"


@dataclass(frozen=True)
class Line:
    """What a user asks for; the suite, the system beside ours and ours, and the case that both were timed in."""

    what: str
    suite: str
    beside: str
    ours: str
    case: str = "decode"
    on: str = H100


LINES = (
    Line("Qwen3-4B, `lossless`", "decode-qwen3-4b", "plain", "pio-lossless"),
    Line("Qwen3-4B, `balanced`: half of the bytes", "decode-qwen3-4b", "plain", "pio-balanced"),
    Line("Qwen3-4B, `performance`", "decode-qwen3-4b", "plain", "pio-performance"),
    Line("Qwen3-30B-A3B, fused", "decode-qwen3-30b-a3b", "plain", "pio-graph"),
    Line("Qwen3-30B-A3B in int4: 17.4 GB of 61", "decode-qwen3-30b-a3b", "plain", "pio-int4"),
    Line("Qwen3-30B-A3B within 16 GB", "offload-qwen3-30b-a3b", "cpu-offload", "pio-16gb"),
    Line(
        "Qwen3-30B-A3B within 12 GB, `memory_efficient`", "offload-qwen3-30b-a3b", "cpu-offload",
        "pio-memory-efficient-12gb",
    ),
    Line("a prompt of 128K, Qwen3-4B, `sparse_attention`", "prefill-qwen3-4b-128k", "plain", "pio-sparse", "131072"),
    Line("SmolLM2-135M, `performance`", "cpu-demo", "plain-float32", "pio-performance", on=CPU),
)  # fmt: skip


def opening(found: Iterable[Results]) -> str:
    """The lines whose both systems have been timed, in Markdown."""
    suites = {one["suite"]: one for one in found}
    rows = [
        "| tokens a second | on | the library, or accelerate | inference-pio | |",
        "|---|---|---|---|---|",
    ]
    for line in LINES:
        speeds = [_median(suites.get(line.suite), name, line.case) for name in (line.beside, line.ours)]
        if all(speeds):
            beside, ours = (speed or 0.0 for speed in speeds)
            ratio = f"{ours / beside:.1f}x" if ours < 100 * beside else f"{ours / beside:.0f}x"
            rows.append(f"| {line.what} | {line.on} | {_told(beside)} | {_told(ours)} | **{ratio}** |")
    return "\n".join(rows)


def _median(found: Results | None, name: str, case: str) -> float | None:
    arm = {} if found is None else found["arms"].get(name, {})
    if arm.get("status") != "ok" or case not in arm["cases"]:
        return None
    return float(arm["cases"][case]["median"])


def _told(speed: float) -> str:
    """
    >>> _told(11014.4), _told(33.62), _told(0.1046)
    ('11,014', '33.6', '0.10')
    """
    return f"{speed:,.0f}" if speed >= 1000 else f"{speed:.1f}" if speed >= 1 else f"{speed:.2f}"
