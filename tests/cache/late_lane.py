"""Stand-ins for a device's lane: one copies as late as a GPU may, one keeps the time that copies would take."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest
import torch
from torch import Tensor

from inference_pio.cache import staging


class LateLane:
    """What is sent is copied only when it is waited for; it then reads what lies there at that time."""

    def __init__(self) -> None:
        self.sent: list[Callable[[], object]] = []
        self.done = 0
        self.log: list[str] = []

    def begin(self) -> None:
        self.log.append("begin")

    def send(self, to: Tensor, source: Tensor) -> None:
        self.log.append("send")
        self.sent.append(lambda: to.copy_(source))

    def mark(self) -> int:
        return len(self.sent)

    def wait(self, mark: int) -> None:
        for copy in self.sent[self.done : mark]:
            copy()
        self.done = max(self.done, mark)

    def drain(self) -> None:
        self.log.append("drain")
        self.wait(len(self.sent))


class SlowLane:
    """A lane and a computation, each with the time that it has got to; a copy takes a second for `rate` bytes.

    What computes tells its seconds to `compute`. `busy` are those in which bytes went over the link.
    """

    rate = 1.0

    def __init__(self) -> None:
        self.computed = self.copied = self.busy = 0.0
        self.nbytes = 0

    def compute(self, seconds: float) -> None:
        self.computed += seconds

    def begin(self) -> None:
        self.copied = max(self.copied, self.computed)

    def send(self, to: Tensor, source: Tensor) -> None:
        to.copy_(source)
        self.nbytes += source.nbytes
        self.busy += source.nbytes / self.rate
        self.copied += source.nbytes / self.rate

    def mark(self) -> float:
        return self.copied

    def wait(self, mark: float) -> None:
        self.computed = max(self.computed, mark)

    def drain(self) -> None:
        self.wait(self.copied)


Kind = TypeVar("Kind", LateLane, SlowLane)


def put_lanes(monkeypatch: pytest.MonkeyPatch, kind: type[Kind]) -> list[Kind]:
    """From now on caches on the host are served by such lanes; those made are listed."""
    made: list[Kind] = []

    def lane_of(device: torch.device) -> Kind:
        made.append(kind())
        return made[-1]

    monkeypatch.setattr(staging, "lane_of", lane_of)
    return made


def put_late_lanes(monkeypatch: pytest.MonkeyPatch) -> list[LateLane]:
    return put_lanes(monkeypatch, LateLane)
