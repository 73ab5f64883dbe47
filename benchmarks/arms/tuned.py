"""What a tuning suite chose on this device, for the suites that run behind it."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks import results


def best(suite: str, device: torch.device, arm: str | None = None) -> dict[str, Any] | None:
    """The fields of the best launch among all arms of a tuning suite, or of one of them; None where none was found."""
    if device.type != "cuda":
        return None
    path = results.known(suite, torch.cuda.get_device_name(device))
    if path is None:
        return None
    rows = [row["best"] for name, row in results.read(path)["arms"].items() if arm in (None, name) and "best" in row]
    return dict(max(rows, key=lambda row: row["value"])["launch"]) if rows else None
