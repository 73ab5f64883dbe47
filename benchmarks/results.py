"""A suite's results on one device: one JSON file, written whole or not at all, checked when read."""

from __future__ import annotations

import json
import os
import re
import statistics
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from inference_pio.files import write_atomically

SCHEMA = 1
FOLDER = Path(__file__).parent / "results"
INTO = "INFERENCE_PIO_BENCHMARKS_INTO"
"""The environment variable by which a run tells its processes the folder it writes to."""
STATUSES = ("ok", "wrong", "failed", "unavailable")
KEYS: dict[str, type | tuple[type, ...]] = {
    "schema": int, "suite": str, "title": str, "kind": str, "baseline": str, "device": str, "smoke": bool, "date": str,
    "commit": (str, type(None)), "machine": dict, "settings": dict, "ceilings": dict, "waves": list, "arms": dict,
}  # fmt: skip
ARM_KEYS: dict[str, type | tuple[type, ...]] = {
    "label": str,
    "status": str,
    "reason": str,
    "notes": list,
    "cases": dict,
}
CASE_KEYS: dict[str, type | tuple[type, ...]] = {"unit": str, "median": (int, float), "samples": list}

Results = dict[str, Any]


class BadResults(ValueError):
    """A results file does not hold what it should; the message says where and what."""


def path_of(suite: str, device: str, folder: Path = FOLDER) -> Path:
    return folder / f"{suite}-{slug(device)}.json"


def known(suite: str, device: str) -> Path | None:
    """Where a suite's results on a device lie: in the folder that this run writes to, else among the recorded ones."""
    folders = [Path(given)] if (given := os.environ.get(INTO)) else []
    paths = [path_of(suite, device, folder) for folder in (*folders, FOLDER)]
    return next((path for path in paths if path.exists()), None)


def slug(device: str) -> str:
    """A device's name as a part of a file's name.

    >>> slug("NVIDIA H100 80GB HBM3")
    'nvidia-h100-80gb-hbm3'
    """
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def read(path: Path) -> Results:
    """Raises BadResults unless the file is complete and of this schema."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BadResults(f"{path.name} cannot be read: {error}") from error
    check(found, path.name)
    return found  # type: ignore[no-any-return]


def write(results: Results, path: Path) -> None:
    results["date"] = datetime.now(UTC).isoformat(timespec="seconds")
    check(results, path.name)
    write_atomically(path, json.dumps(results, indent=1, allow_nan=False) + "\n")


def check(found: Any, where: str) -> None:
    _has(found, KEYS, where)
    if found["schema"] != SCHEMA:
        raise BadResults(f"{where} has schema {found['schema']}, and this program reads {SCHEMA}")
    for name, arm in found["arms"].items():
        _has(arm, ARM_KEYS, f"{where}, {name}")
        if arm["status"] not in STATUSES:
            raise BadResults(f"{where}, {name}: status {arm['status']!r} is none of {', '.join(STATUSES)}")
        if arm["status"] != "ok" and not arm["reason"]:
            raise BadResults(f"{where}, {name}: {arm['status']} without a reason")
        if (arm["status"] == "ok") != bool(arm["cases"]):
            raise BadResults(f"{where}, {name}: a system is timed if and only if it is right")
        for case, row in arm["cases"].items():
            _has(row, CASE_KEYS, f"{where}, {name}, {case}")


def _has(found: Any, keys: Mapping[str, Any], where: str) -> None:
    if not isinstance(found, dict):
        raise BadResults(f"{where} is no JSON object")
    for key, kind in keys.items():
        if key not in found:
            raise BadResults(f"{where} has no {key!r}")
        if not isinstance(found[key], kind) or (kind is not bool and isinstance(found[key], bool)):
            raise BadResults(f"{where}: {key!r} is a {type(found[key]).__name__}")


def case(
    unit: str, samples: list[float], share: Mapping[str, Any] | None, ceilings: Mapping[str, Any]
) -> dict[str, Any]:
    """A row of one case: its samples, their median and spread, and the share of a ceiling that the median makes."""
    row: dict[str, Any] = {
        "unit": unit, "median": statistics.median(samples), "low": min(samples), "high": max(samples),
        "samples": samples,
    }  # fmt: skip
    limit = ceilings.get(share["ceiling"], {}).get("value") if share else None
    if share:
        row["rate"] = {"value": row["median"] * share["per_unit"], "unit": share["unit"]}
    if share and limit:
        row["share"] = {"of": share["ceiling"], "value": row["rate"]["value"] / limit}
    return row
