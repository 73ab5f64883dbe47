"""The planner: which layers stay in memory and which stream, from their bytes and the budgets. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from inference_pio.contract.byte_size import in_words
from inference_pio.contract.spread import spread

SLOTS = 2
"""One slot computes while the next is filled."""


@dataclass(frozen=True)
class Speeds:
    """Bytes a second of the disk and of the link to the device, and seconds that a token's arithmetic takes.

    What is None is not known, and then nothing is foretold that depends on it.
    """

    disk: float | None = None
    link: float | None = None
    compute_s: float | None = None


@dataclass(frozen=True)
class Placement:
    """Layers by number: `resident` on the device, `host` in host memory, `disk` read for each pass.

    On a CPU the device's memory is the host's, so nothing is in `host`.
    """

    resident: tuple[int, ...]
    host: tuple[int, ...]
    disk: tuple[int, ...]
    slots: int
    slot_bytes: int
    device_bytes: int
    host_bytes: int
    disk_bytes: int

    @property
    def streamed(self) -> tuple[int, ...]:
        return tuple(sorted(self.host + self.disk))

    @property
    def streamed_bytes(self) -> int:
        return self.host_bytes + self.disk_bytes

    def tokens_per_s(self, speeds: Speeds) -> float | None:
        """Passes a second where everything overlaps: the slowest of disk, link and arithmetic decides."""
        seconds = [speeds.compute_s or 0.0]
        for nbytes, speed in ((self.disk_bytes, speeds.disk), (self.streamed_bytes, speeds.link)):
            if nbytes and speed:
                seconds.append(nbytes / speed)
        return 1 / max(seconds) if max(seconds) > 0 else None

    def to_json(self) -> dict[str, Any]:
        return {
            "resident": list(self.resident), "host": list(self.host), "disk": list(self.disk), "slots": self.slots,
            "slot_bytes": self.slot_bytes, "memory_bytes": self.device_bytes, "host_bytes": self.host_bytes,
            "read_bytes_per_pass": self.disk_bytes,
        }  # fmt: skip


def place(
    layer_bytes: Sequence[int], fixed_bytes: int, budget: int, host_budget: int | None = None, slots: int = SLOTS
) -> Placement | str:
    """The most resident layers that the budget of the device bears, or why it bears none, in numbers.

    `fixed_bytes` always stay. With a `host_budget`, what streams waits in host memory as far as that goes. Where two
    slots are too many, one is taken: then layers are read while resident ones compute, not while streamed ones do.

    >>> place([10] * 8, fixed_bytes=5, budget=50).resident
    (0, 4)
    """
    for count in (*range(slots, 1, -1), 1):
        for resident in range(len(layer_bytes), -1, -1):
            streamed = spread(len(layer_bytes) - resident, len(layer_bytes))
            found = _placed(layer_bytes, fixed_bytes, streamed, min(count, len(streamed)), host_budget)
            if found.device_bytes <= budget:
                return found
    largest = max(layer_bytes, default=0)
    return (
        f"the budget is {in_words(budget)}, and {in_words(fixed_bytes)} always stay (embedding, head and what "
        f"is not in layers), so that with room for one layer ({in_words(largest)}) the least is "
        f"{in_words(fixed_bytes + largest)}"
    )


def _placed(
    layer_bytes: Sequence[int], fixed_bytes: int, streamed: tuple[int, ...], slots: int, host_budget: int | None
) -> Placement:
    resident = tuple(number for number in range(len(layer_bytes)) if number not in streamed)
    slot_bytes = max((layer_bytes[number] for number in streamed), default=0)
    in_host = _in_host([layer_bytes[number] for number in streamed], host_budget or 0)
    host = tuple(streamed[number] for number in in_host)
    disk = tuple(number for number in streamed if number not in host)
    return Placement(
        resident, host, disk, slots, slot_bytes,
        device_bytes=fixed_bytes + sum(layer_bytes[number] for number in resident) + slots * slot_bytes,
        host_bytes=sum(layer_bytes[number] for number in host),
        disk_bytes=sum(layer_bytes[number] for number in disk),
    )  # fmt: skip


def _in_host(streamed_bytes: Sequence[int], host_budget: int) -> tuple[int, ...]:
    """The most of those that stream that host memory holds, evenly spread too."""
    for count in range(len(streamed_bytes), 0, -1):
        chosen = spread(count, len(streamed_bytes))
        if sum(streamed_bytes[number] for number in chosen) <= host_budget:
            return chosen
    return ()
