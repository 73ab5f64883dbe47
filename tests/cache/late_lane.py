"""A stand-in for a device's lane: copies lie on the way until somebody waits for them, as late as a GPU may be."""

from __future__ import annotations

from collections.abc import Callable

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


def put_late_lanes(monkeypatch: pytest.MonkeyPatch) -> list[LateLane]:
    """From now on caches on the host are served by such lanes; those made are listed."""
    made: list[LateLane] = []

    def lane_of(device: torch.device) -> LateLane:
        made.append(LateLane())
        return made[-1]

    monkeypatch.setattr(staging, "lane_of", lane_of)
    return made
