"""Systems in waves: as many as fit are set up, checked, and then timed in turn: A B C, A B C, ...

A drift of the machine meets all systems of a wave; between waves the copy ceiling, measured anew, shows it. What was
found so far is saved after each set-up and after each turn: a run that is killed loses a turn.
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


@dataclass(frozen=True)
class Walk:
    """What all steps of a suite share. `save` writes what was found; `time_wrong`: wrong systems are timed too, and
    what they took is kept beside, never among, the results. `side_by_side`: the systems have processes of their own."""

    suite: Suite
    into: results.Results
    clock: Clock
    say: Say
    save: Callable[[], None] = lambda: None
    time_wrong: bool = False
    side_by_side: bool = True


@dataclass
class Timed:
    """One system of a wave: its worker, what it said at set-up, its rounds."""

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
        """Of the cases that the last round still had."""
        left = self.rounds[-1]["values"]
        return {case: [row["values"][case] for row in self.rounds] for case in self.said["units"] if case in left}


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


def run(walk: Walk, wave: list[str], number: int, start: Start) -> None:
    """Set up, check, time and record one wave; a system that no time was left for is not recorded."""
    into, clock = walk.into, walk.clock
    with ThreadPoolExecutor(len(wave)) as hands:
        workers = dict(zip(wave, hands.map(start, wave), strict=True))  # they import at the same time
    timed: list[Timed] = []
    try:

        def set_up(arm: str) -> dict[str, Any] | None:
            said = _set_up(walk, arm, workers[arm], number, first=arm == wave[0])
            if said is None:
                workers.pop(arm).close()  # the next one needs the room
            clock.whole = False
            return said

        # kernels compile side by side; a model's set-up is told in seconds, and needs the device to itself
        together = walk.side_by_side and walk.suite.kind == "kernels" and not walk.suite.one_by_one
        with ThreadPoolExecutor(len(wave) if together else 1) as hands:
            for arm, said in zip(wave, hands.map(set_up, wave), strict=True):
                if said is not None:
                    timed.append(Timed(arm, workers[arm], said))
                walk.save()
        for _ in range(walk.suite.rounds):
            _turn(walk, timed, number)
        for one in timed:
            if one.rounds and one.arm in into["arms"]:
                walk.say(f"  {one.arm}: {_told(into['arms'][one.arm])}")
    finally:
        with ThreadPoolExecutor(len(wave)) as hands:
            list(hands.map(lambda worker: worker.close(), workers.values()))


def _set_up(walk: Walk, arm: str, worker: Worker, number: int, *, first: bool) -> dict[str, Any] | None:
    """What a system to be timed said, or None: then why is recorded, unless only time was missing."""
    began, into = time.monotonic(), walk.into
    limit, whole = max(1.0, min(LONGEST_SET_UP_S, walk.clock.left())), first and walk.clock.whole
    try:
        said = worker.ask("set up", limit)
    except Fault as fault:
        walk.say(f"  {arm}: {fault.status}: {fault}")
        _say_log(walk, fault)
        if fault.status == "timeout" and not whole:
            return None
        status = "failed" if fault.status == "timeout" else fault.status
        into["arms"][arm] = _not_timed(label(walk.suite, arm), status, str(fault), number)
        return None
    found = "" if said["right"] else f": WRONG, {said['reason']}"
    walk.say(f"  {arm}: set up and checked in {time.monotonic() - began:.0f} s{found}")
    for note in said["notes"]:
        walk.say(f"    {note}")
    if not said["right"]:
        into["arms"][arm] = _wrong(said, number)
        return said if walk.time_wrong and said["units"] else None
    return said


def _turn(walk: Walk, timed: list[Timed], number: int) -> None:
    """One round of each system that needs another and, by its last one, has the time."""
    acted = False
    for one in list(timed):
        last = one.rounds[-1]["asked_s"] if one.rounds else 0.0
        if one.finished(walk.suite.rounds) or walk.clock.left() < 1.2 * last:
            continue
        began = time.monotonic()
        try:
            answer = one.worker.ask("round", max(1.0, walk.clock.left()))
        except Fault as fault:
            timed.remove(one)
            if fault.status != "timeout":
                reason = f"while timed: {fault}"
                walk.into["arms"][one.arm] = _not_timed(one.said["label"], "failed", reason, number)
            walk.say(f"  {one.arm}: {fault.status} while timed: {fault}")
            _say_log(walk, fault)
            continue
        one.rounds.append(answer | {"asked_s": time.monotonic() - began})
        for reason in answer.get("dropped", []):
            one.said["notes"].append(reason)
            walk.say(f"  {one.arm}: {reason}")
        walk.into["arms"][one.arm] = _recorded(one, number, walk.into["ceilings"])
        acted = True
    if acted:
        walk.save()


def _say_log(walk: Walk, fault: Fault) -> None:
    for line in fault.log.splitlines():
        walk.say(f"    | {line}")


def _recorded(one: Timed, number: int, ceilings: dict[str, Any]) -> dict[str, Any]:
    said, samples = one.said, one.samples()
    usual_s = statistics.median(row["seconds"] for row in one.rounds)
    cases = {
        case: results.case(said["units"][case], values, said["shares"].get(case), ceilings)
        | ({"facts": said["facts"][case]} if "facts" in said else {})
        for case, values in samples.items()
    }
    if not said["right"]:
        return _wrong(said, number) | {"timed although wrong": cases}
    found = {
        "label": said["label"], "status": "ok", "reason": "", "wave": number, "rounds": len(one.rounds),
        "set_up_s": max(0.0, said["warm_s"] - said["warm_rounds"] * usual_s), "check": said["check"],
        "bytes": said["bytes"] | {"peak": max(row["peak_bytes"] for row in one.rounds)},
        "repeatable": len({row.get("digest") for row in one.rounds}) == 1, "notes": said["notes"], "cases": cases,
    }  # fmt: skip
    if said.get("choose_best"):
        case, row = max(cases.items(), key=lambda pair: pair[1]["median"])
        found["best"] = {"case": case, "value": row["median"], "launch": row["facts"]["launch"]}
    return found


def _wrong(said: dict[str, Any], number: int) -> dict[str, Any]:
    found = _not_timed(said["label"], "wrong", said["reason"], number)
    return found | {"check": said["check"], "notes": said["notes"]}


def _not_timed(named: str, status: str, reason: str, number: int) -> dict[str, Any]:
    return {"label": named, "status": status, "reason": reason, "wave": number, "notes": [], "cases": {}}


def _told(arm: dict[str, Any]) -> str:
    """A line a case, the fastest first where one is chosen; in one line where there are few."""
    cases = arm["cases"] or arm.get("timed although wrong", {})
    rows = []
    for case, row in sorted(cases.items(), key=lambda pair: -pair[1]["median"] if "best" in arm else 0):
        share = f", {row['share']['value']:.0%} of {row['share']['of']}" if "share" in row else ""
        rows.append(f"{case} {row['median']:.4g} {row['unit']} ({row['low']:.4g}-{row['high']:.4g}{share})")
    told = "; ".join(rows) if len(rows) < 3 else "".join(f"\n    {row}" for row in rows)
    if "bytes" not in arm:
        return f"{told}; although {arm['status']}"
    return f"{told}\n    set-up {arm['set_up_s']:.1f} s, peak {arm['bytes']['peak'] / 1e9:.2f} GB"


def label(suite: Suite, arm: str) -> str:
    from benchmarks.jobs import label_of

    return label_of(suite, arm)


def _spread(values: list[float]) -> float:
    return (max(values) - min(values)) / statistics.median(values)
