"""A lane beside the computation, on which bytes go to the host and come back while layers compute."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor


class Lane(Protocol):
    """Copies in the order in which they are sent. Nobody on the host waits, but for `drain`."""

    def begin(self) -> None:
        """What is sent from now on comes behind all that was computed until now."""

    def send(self, to: Tensor, source: Tensor) -> None:
        """Copy, whenever the lane comes to it."""

    def mark(self) -> Any:
        """A place behind all that was sent until now."""

    def wait(self, mark: Any) -> None:
        """What is computed from now on comes behind a mark."""

    def drain(self) -> None:
        """Wait, on the host, for all that was sent."""


class HereLane:
    """The lane of a CPU: what is sent is there at once."""

    def begin(self) -> None:
        """Everything has been computed."""

    def send(self, to: Tensor, source: Tensor) -> None:
        to.copy_(source)

    def mark(self) -> None:
        return None

    def wait(self, mark: None) -> None:
        """Everything has come."""

    def drain(self) -> None:
        """Everything has come."""


class CudaLane:
    """A stream of its own, and events between it and the one that computes; host tensors must be pinned."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def begin(self) -> None:
        self.stream.wait_stream(torch.cuda.current_stream(self.device))

    def send(self, to: Tensor, source: Tensor) -> None:
        with torch.cuda.stream(self.stream):
            to.copy_(source, non_blocking=True)
        (to if to.is_cuda else source).record_stream(self.stream)  # a cache may be dropped while this is on its way

    def mark(self) -> torch.cuda.Event:
        mark: torch.cuda.Event = self.stream.record_event()
        return mark

    def wait(self, mark: torch.cuda.Event) -> None:
        torch.cuda.current_stream(self.device).wait_event(mark)

    def drain(self) -> None:
        self.stream.synchronize()


def lane_of(device: torch.device) -> Lane:
    """A lane for a device's computation."""
    return CudaLane(device) if device.type == "cuda" else HereLane()
