"""What a tuning suite chose on this device, for the suites that run behind it."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks import results


def best(suite: str, device: torch.device, *arms: str) -> dict[str, Any] | None:
    """The fields of the best launch among these arms of a tuning suite; None where none was found on this device."""
    if device.type != "cuda":
        return None
    path = results.known(suite, torch.cuda.get_device_name(device))
    found = results.read(path)["arms"] if path else {}
    rows = [found[arm]["best"] for arm in arms if "best" in found.get(arm, {})]
    return dict(max(rows, key=lambda row: row["value"])["launch"]) if rows else None
