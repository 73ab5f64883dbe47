"""Systems in waves: as many as fit are set up, checked, and then timed in turn: A B C, A B C, ...

A drift of the machine meets all systems of a wave; between waves the copy ceiling, measured anew, shows it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from benchmarks import results
from benchmarks.pool import Fault, Worker
from benchmarks.suites import Suite

Start = Callable[[str], Worker]
Say = Callable[[str], None]
SLOW_ROUND_S, FEW_ROUNDS, CLOSE = 5.0, 3, 0.03
LONGEST_SET_UP_S = 560.0


@dataclass
class Clock:
    """How much of this slice is left; `whole` until the first system of the slice is done."""

    ends: float
    whole: bool = True

    def left(self) -> float:
        return self.ends - time.monotonic()


@dataclass
class Timed:
    """One system of a wave that passed its check: its worker, what it said at set-up, its rounds."""

    arm: str
    worker: Worker
    said: dict[str, Any]
    rounds: list[dict[str, Any]] = field(default_factory=list)

    def finished(self, rounds: int) -> bool:
        """All rounds, or few of a slow system whose rounds agree."""
        if len(self.rounds) >= rounds:
            return True
        if len(self.rounds) < FEW_ROUNDS or self.rounds[-1]["seconds"] < SLOW_ROUND_S:
            return False
        return all(_spread(values) < CLOSE for case, values in self.samples().items() if case != "first token")

    def samples(self) -> dict[str, list[float]]:
        return {case: [row["values"][case] for row in self.rounds] for case in self.said["units"]}


def form(suite: Suite, pending: list[str], free_gigabytes: float, left_s: float, clock: Clock, most: int) -> list[str]:
    """The next wave: what fits beside one another on the device and, by prediction, into the time left."""
    expected, wave, seconds = {**suite.arms, **suite.optional}, [], 0.0
    for arm in pending:
        fits = not wave or (len(wave) + 1) * suite.gigabytes <= free_gigabytes
        in_time = seconds + expected[arm] <= left_s or (clock.whole and not wave)
        if len(wave) == most or not fits:
            break
        if in_time:  # a shorter one behind may still fit where this one does not
            wave.append(arm)
            seconds += expected[arm]
    return wave


def run(
    suite: Suite, wave: list[str], number: int, start: Start, into: results.Results, clock: Clock, say: Say
) -> None:
    """Set up, check, time and record one wave; a system that no time was left for is not recorded."""
    with ThreadPoolExecutor(len(wave)) as starting:
        workers = dict(zip(wave, starting.map(start, wave), strict=True))  # they import at the same time
    timed: list[Timed] = []
    try:
        for arm in wave:
            said = _set_up(suite, arm, workers[arm], number, into, clock, say)
            if said is None:
                workers.pop(arm).close()
            else:
                timed.append(Timed(arm, workers[arm], said))
            clock.whole = False
        _rounds(suite, timed, into, clock, say)
        for one in timed:
            if one.rounds:
                into["arms"][one.arm] = _recorded(one, number, into["ceilings"])
                say(f"  {one.arm}: {_told(into['arms'][one.arm])}")
    finally:
        for worker in workers.values():
            worker.close()


def _set_up(
    suite: Suite, arm: str, worker: Worker, number: int, into: results.Results, clock: Clock, say: Say
) -> dict[str, Any] | None:
    """What a right system said, or None: then why is recorded, unless only time was missing."""
    began = time.monotonic()
    limit, whole = max(1.0, min(LONGEST_SET_UP_S, clock.left())), clock.whole
    try:
        said = worker.ask("set up", limit)
    except Fault as fault:
        say(f"  {arm}: {fault.status}: {fault}")
        if fault.status == "timeout" and not whole:
            return None
        status = "failed" if fault.status == "timeout" else fault.status
        into["arms"][arm] = _not_timed(label(suite, arm), status, str(fault), number)
        return None
    say(f"  {arm}: set up and checked in {time.monotonic() - began:.0f} s{'' if said['right'] else ': WRONG'}")
    if not said["right"]:
        into["arms"][arm] = _not_timed(said["label"], "wrong", said["reason"], number) | {
            "check": said["check"], "notes": said["notes"],
        }  # fmt: skip
        return None
    return said


def _rounds(suite: Suite, timed: list[Timed], into: results.Results, clock: Clock, say: Say) -> None:
    last: dict[str, float] = {}
    for _ in range(suite.rounds):
        for one in list(timed):
            if one.finished(suite.rounds) or clock.left() < 1.2 * last.get(one.arm, 0.0):
                continue
            try:
                began = time.monotonic()
                one.rounds.append(one.worker.ask("round", max(1.0, clock.left())))
                last[one.arm] = time.monotonic() - began
            except Fault as fault:
                timed.remove(one)
                if fault.status != "timeout":
                    into["arms"][one.arm] = _not_timed(one.said["label"], "failed", f"while timed: {fault}", 0)
                say(f"  {one.arm}: {fault.status} while timed: {fault}")


def _recorded(one: Timed, number: int, ceilings: dict[str, Any]) -> dict[str, Any]:
    said, samples = one.said, one.samples()
    usual_s = statistics.median(row["seconds"] for row in one.rounds)
    return {
        "label": said["label"], "status": "ok", "reason": "", "wave": number, "rounds": len(one.rounds),
        "set_up_s": max(0.0, said["warm_s"] - said["warm_rounds"] * usual_s), "check": said["check"],
        "bytes": said["bytes"] | {"peak": max(row["peak_bytes"] for row in one.rounds)},
        "repeatable": len({row.get("digest") for row in one.rounds}) == 1, "notes": said["notes"],
        "cases": {
            case: results.case(said["units"][case], values, said["shares"].get(case), ceilings)
            for case, values in samples.items()
        },
    }  # fmt: skip


def _not_timed(named: str, status: str, reason: str, number: int) -> dict[str, Any]:
    return {"label": named, "status": status, "reason": reason, "wave": number, "notes": [], "cases": {}}


def _told(arm: dict[str, Any]) -> str:
    rows = []
    for case, row in arm["cases"].items():
        share = f", {row['share']['value']:.0%} of {row['share']['of']}" if "share" in row else ""
        rows.append(f"{case} {row['median']:.4g} {row['unit']} ({row['low']:.4g}-{row['high']:.4g}{share})")
    return "; ".join(rows) + f"; set-up {arm['set_up_s']:.1f} s, peak {arm['bytes']['peak'] / 1e9:.2f} GB"


def label(suite: Suite, arm: str) -> str:
    from benchmarks.jobs import label_of

    return label_of(suite, arm)


def _spread(values: list[float]) -> float:
    return (max(values) - min(values)) / statistics.median(values)
