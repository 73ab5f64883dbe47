"""Reports to draw: a recorded one, and several profiles made of it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

RECORD = Path(__file__).parents[3] / "benchmarks" / "results" / "demo-balanced-cpu-2cores.json"


def recorded(**changes: Any) -> dict[str, Any]:
    """What `pio optimize demo --json` wrote on two cores."""
    data: dict[str, Any] = json.loads(RECORD.read_text())
    return {**data, **changes}


def profiles_of_record() -> dict[str, Any]:
    """Two profiles that applied and one that did not, in the form of `ProfilesReport.to_json()`."""
    data = recorded()
    tried = {key: data[key] for key in ("plan", "receipts", "optimized", "comparison")}
    slower = copy.deepcopy(tried)
    slower["comparison"]["decode_speedup"] = 0.5
    return {
        "model": data["model"], "baseline_name": "plain bfloat16", "baseline": data["baseline"],
        "machine": data["machine"], "notes": ["one after the other"],
        "profiles": [
            {"profile": "balanced", **tried, "failed": None},
            {"profile": "performance", **slower, "failed": None},
            {"profile": "lossless", "plan": None, "receipts": [], "optimized": None, "comparison": None,
             "failed": "nothing of it applies here"},
        ],
    }  # fmt: skip


def with_steps() -> dict[str, Any]:
    """The record with its two ends as if they were measured step by step."""
    data = recorded()
    return data | {
        "steps": [
            {"name": "plain", "measured": data["baseline"], "comparison": None},
            {"name": "tensor_compression", "measured": data["optimized"], "comparison": data["comparison"]},
        ]
    }
