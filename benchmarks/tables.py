"""Results as Markdown: a table a suite, with every system that was tried, also those that failed or were wrong."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from benchmarks.results import Results

SHORT = 10
"""Characters of a commit's name."""


MOST_SHARE = 1.1
"""Of a ceiling: more than that is the dense work of a system that does not do all of it."""


def tables(found: Iterable[Results]) -> str:
    """All suites, the CPU's last; a sentence where nothing was recorded."""
    rows = [table(one) for one in ordered(found)]
    return (
        "\n\n".join(rows) or "No results are recorded yet: `python benchmarks/run.py SUITE` measures and writes them."
    )


def ordered(found: Iterable[Results]) -> list[Results]:
    """By device, the CPU's last, and name."""
    return sorted(found, key=lambda one: (one["device"].startswith("cpu"), one["device"], one["suite"]))


def table(found: Results) -> str:
    """One suite: a title, what it ran on, and its rows, ours in bold."""
    kinds = {"decode": _decode, "prefill": _lengths, "kernels": _kernels, "load": _loads, "score": _scores}
    head, rows = kinds[found["kind"]](found)
    lines = [f"**{found['title']}** ({_device(found)})", "", _row(head), _row(["---"] * len(head))]
    return "\n".join(lines + [_row(row) for row in rows])


def _decode(found: Results) -> tuple[list[str], list[list[str]]]:
    base = _median(found, found["baseline"], "decode")
    versus = f"against {found['baseline']}"
    limit = next((row["share"]["of"] for row in _cases(found, "decode") if "share" in row), "the ceiling")
    head = ["system", "tokens/s", versus, "GB/s", f"share of {limit}", "first token", "set-up", "peak"]
    rows = []
    for name, arm in found["arms"].items():
        if arm["status"] != "ok":
            rows.append([_name(name, arm), _why(arm), *[""] * (len(head) - 2)])
            continue
        row, first = arm["cases"]["decode"], arm["cases"]["first token"]["median"]
        rows.append([
            _name(name, arm), f"{row['median']:.1f} ({row['low']:.1f}-{row['high']:.1f})",
            f"{row['median'] / base:.2f}x" if base else "", f"{row['rate']['value']:.0f}" if "rate" in row else "",
            _share(row), f"{first * 1e3:.0f} ms", f"{arm['set_up_s']:.0f} s", _size(arm["bytes"]["peak"]),
        ])  # fmt: skip
    return head, rows


def _loads(found: Results) -> tuple[list[str], list[list[str]]]:
    base = _median(found, found["baseline"], "seconds")
    limit = next((row["share"]["of"] for row in _cases(found, "load") if "share" in row), "the ceiling")
    head = ["system", "seconds", f"against {found['baseline']}", "GB/s", f"share of {limit}", "weights", "peak"]
    rows = []
    for name, arm in found["arms"].items():
        if arm["status"] != "ok":
            rows.append([_name(name, arm), _why(arm), *[""] * (len(head) - 2)])
            continue
        took, row = arm["cases"]["seconds"], arm["cases"]["load"]
        rows.append([
            _name(name, arm), f"{took['median']:.1f} ({took['low']:.1f}-{took['high']:.1f})",
            f"{took['median'] / base:.2f}x" if base else "", f"{row['median']:.2f}", _share(row),
            _size(arm["bytes"]["weights"]), _size(arm["bytes"]["peak"]),
        ])  # fmt: skip
    return head, rows


def _scores(found: Results) -> tuple[list[str], list[list[str]]]:
    base = _median(found, found["baseline"], "batches")
    head = ["system", "batches/s", f"against {found['baseline']}", "set-up", "peak"]
    rows = []
    for name, arm in found["arms"].items():
        if arm["status"] != "ok":
            rows.append([_name(name, arm), _why(arm), *[""] * (len(head) - 2)])
            continue
        row = arm["cases"]["batches"]
        rows.append([
            _name(name, arm), f"{row['median']:.2f} ({row['low']:.2f}-{row['high']:.2f})",
            f"{row['median'] / base:.1f}x" if base else "", f"{arm['set_up_s']:.0f} s", _size(arm["bytes"]["peak"]),
        ])  # fmt: skip
    return head, rows


def _lengths(found: Results) -> tuple[list[str], list[list[str]]]:
    lengths = [str(length) for length in found["settings"]["lengths"]]
    head = [
        "system",
        *[f"{_length(length)}, tokens/s" for length in lengths],
        "share of matmul at most",
        "set-up",
        "peak",
    ]
    rows = []
    for name, arm in found["arms"].items():
        if arm["status"] != "ok":
            rows.append([_name(name, arm), _why(arm), *[""] * (len(head) - 2)])
            continue
        cells = [_figure(arm["cases"].get(length)) for length in lengths]
        best = max((row["share"]["value"] for row in arm["cases"].values() if "share" in row), default=None)
        share = "" if best is None else f"{best:.0%}" if best <= MOST_SHARE else "work is left out"
        rows.append([_name(name, arm), *cells, share, f"{arm['set_up_s']:.0f} s", _size(arm["bytes"]["peak"])])
    return head, rows


def _kernels(found: Results) -> tuple[list[str], list[list[str]]]:
    """A row a size, a column a system; systems that served no size stand in rows of their own, with the reason."""
    served = {name: arm for name, arm in found["arms"].items() if arm["status"] == "ok"}
    head = ["", *[_name(name, arm) for name, arm in served.items()]]
    rows = []
    for case in dict.fromkeys(case for arm in served.values() for case in arm["cases"]):
        base = _median(found, found["baseline"], case)
        rows.append([_length(case), *[_against(arm["cases"].get(case), base) for arm in served.values()]])
    for name, arm in found["arms"].items():
        if name not in served:
            rows.append([_name(name, arm), _why(arm), *[""] * (len(head) - 2)][: max(2, len(head))])
    return head if len(head) > 1 else [*head, ""], rows


def _against(row: dict[str, Any] | None, base: float | None) -> str:
    if row is None:
        return "-"
    share = f", {_share(row)}" if "share" in row else ""
    ratio = f", {row['median'] / base:.2f}x" if base else ""
    return f"{row['median']:,.0f} {row['unit']}{share}{ratio}"


def _device(found: Results) -> str:
    versions = found["machine"]["versions"]
    where = found["device"]
    if where.startswith("cpu"):
        where = f"{found['machine']['cpu']}, {where.removeprefix('cpu ')}"
    commits = ", ".join(one[:SHORT] for one in (found["commit"] or "").split(" and ") if one)
    commit = f", commit {commits}" if commits else ""
    library = f"torch {versions['torch']}, transformers {versions['transformers']}"
    return f"{where}; {library}; {found['date'][:10]}{commit}"


def _name(name: str, arm: dict[str, Any]) -> str:
    """The system, ours in bold, and whether its rounds gave different tokens."""
    label = f"**{arm['label']}**" if name.startswith("pio") or name == "pio" else str(arm["label"])
    return label if arm.get("repeatable", True) else f"{label} (not the same tokens in every round)"


def _why(arm: dict[str, Any]) -> str:
    reason = arm["reason"].replace("|", "/").replace("\n", " ")
    return f"{arm['status']}: {reason[:160]}"


def _cases(found: Results, case: str) -> list[dict[str, Any]]:
    return [arm["cases"][case] for arm in found["arms"].values() if case in arm["cases"]]


def _median(found: Results, arm: str, case: str) -> float | None:
    row = found["arms"].get(arm, {}).get("cases", {}).get(case)
    return float(row["median"]) if row else None


def _figure(row: dict[str, Any] | None) -> str:
    if row is None:
        return "failed"
    return f"{row['median']:,.0f}"


def _length(length: str) -> str:
    return f"{int(length) // 1024}K" if length.isdecimal() and int(length) >= 1024 else length


def _share(row: dict[str, Any]) -> str:
    return f"{row['share']['value']:.0%}" if "share" in row else ""


def _size(nbytes: float) -> str:
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.0f} MB"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
