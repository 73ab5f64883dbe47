"""A system that tells the losses of many batches: checked against the plain model's, then timed from a cold disk."""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks import real_models
from benchmarks.arms.problem import Unavailable
from benchmarks.arms.room import Room
from benchmarks.arms.scoring import ARMS, one_by_one
from benchmarks.cold import read_bytes
from benchmarks.suites import Suite
from inference_pio.measure import peak_bytes, weight_bytes

Answer = dict[str, Any]
TOLERANCE = 1e-3
"""Of a loss: the same kernels compute, each batch by itself."""


class ScoreJob:
    """Batches a second; each is one row of tokens, and tells its own loss."""

    def __init__(self, suite: Suite, arm: str, device: torch.device, smoke: bool) -> None:
        self.suite, self.arm, self.device, self.smoke = suite, ARMS[arm], device, smoke
        if self.arm.package and importlib.util.find_spec(self.arm.package) is None:
            raise Unavailable(f"the package {self.arm.package} is not installed")
        self.scorer: Any = None

    def set_up(self) -> Answer:
        model = real_models.build(self.suite.model, self.device, smoke=self.smoke)
        rows = real_models.prompt(model, self.suite.prompt_tokens, rows=self.suite.rows)
        self.batches = [{"input_ids": row[None], "labels": row[None]} for row in rows]
        wanted = one_by_one(model, self.batches)
        room = Room(rows[:1], self.suite.prompt_tokens, self.smoke)
        start, before = time.perf_counter(), read_bytes()
        self.scorer = self.arm.make(model, room)
        made, before = time.perf_counter(), read_bytes()
        found = self.scorer(self.batches)
        room.notes.append(f"{(read_bytes() - before) / 1e9:.2f} GB came from the disk for {len(found)} batches")
        error, reason = judge(found, wanted[: self.scorer.most])
        return {
            "label": self.arm.label, "right": not reason, "reason": reason,
            "check": {"error": error, "tolerance": TOLERANCE, "losses": len(found)}, "warm_s": made - start,
            "warm_rounds": 0, "notes": room.notes, "bytes": {"weights": weight_bytes(model)},
            "units": {"batches": "batches/s"}, "shares": {},
        }  # fmt: skip

    def round(self) -> Answer:
        with peak_bytes(self.device) as peak:
            start, forgot_s = time.perf_counter(), self.scorer.forgot_s
            found = self.scorer(self.batches)
            seconds = time.perf_counter() - start - (self.scorer.forgot_s - forgot_s)
        return {
            "values": {"batches": len(found) / seconds}, "seconds": seconds, "peak_bytes": peak.peak_bytes,
            "digest": str([round(loss, 5) for loss in found]),
        }  # fmt: skip

    def close(self) -> None:
        if self.scorer is not None:
            self.scorer.close()


def judge(found: Sequence[float], wanted: Sequence[float]) -> tuple[float | None, str]:
    """How far losses are off at most, as a share, and what is wrong with them: nothing where they may be timed.

    >>> judge([2.0, 4.0], [2.0, 4.0]), judge([2.0], [2.0, 4.0])
    ((0.0, ''), (None, '1 losses came of 2 batches'))
    """
    if len(found) != len(wanted):
        return None, f"{len(found)} losses came of {len(wanted)} batches"
    if not all(map(math.isfinite, found)):  # the largest of some numbers may be none of those that are no numbers
        return None, "a loss is no finite number"
    off = max(abs(one - other) / abs(other) for one, other in zip(found, wanted, strict=True))
    return off, "" if off <= TOLERANCE else f"a loss lies {off:.2g} of itself off, {TOLERANCE} allowed"
