"""A system that is one kernel, at the sizes of its suite: each is checked by itself, then timed.

A size that fails, or whose output is wrong, is left out with its reason; the others stand.
"""

from __future__ import annotations

import importlib
import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.arms.problem import CEILINGS, PER_UNIT, Inputs, KernelArm, Problem, Told, Unavailable
from benchmarks.ceilings import seconds_of
from benchmarks.suites import Suite
from inference_pio.measure import peak_bytes

ROUND_SECONDS, SMALL_ROUND_SECONDS = 0.1, 0.02
"""How long one size is repeated in one round; the second where calls are recorded in a graph."""
CACHE_BYTES, MOST_COPIES, MOST_CALLS = 150e6, 64, 1000
"""Three times the cache of an H100: what the next call reads must come from memory."""
MOST_AHEAD, AHEAD_SECONDS, CYCLES_PER_SECOND = 8, 0.05, 2e9
"""Calls that the host asks for while the device sleeps: about 60 launches each, of the 1,024 that may wait."""


@dataclass
class KernelJob:
    """`arm` names one of the arms of the suite's family, a module of `benchmarks.arms`."""

    suite: Suite
    name: str
    device: torch.device
    smoke: bool
    runs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.family = family_of(self.suite)
        self.arm: KernelArm = self.family.ARMS[self.name]
        if reason := self.arm.unavailable(self.device.type == "cuda"):
            raise Unavailable(reason)

    def set_up(self) -> dict[str, Any]:
        start = time.perf_counter()
        mine = [
            one for one in self.family.problems(self.suite, self.smoke) if one.given.get("arm", self.name) == self.name
        ]
        self.problems = {one.name: one for one in mine}
        self.errors: dict[str, float] = {}
        self.facts: dict[str, dict[str, Any]] = {name: dict(one.given) for name, one in self.problems.items()}
        self.eager: set[str] = set()
        self.notes, missing = [], []
        for name, problem in self.problems.items():
            try:
                self._try(problem)
            except Unavailable as error:
                missing.append(str(error))
                self.notes.append(f"{name}: {error}")
            except Exception as error:  # a kernel may refuse or run out of memory at one size and serve another
                self.notes.append(f"{name}: {type(error).__name__}: {first_line(error)}")
            _forget(self.device)
        if not self.runs and len(missing) == len(self.problems):
            raise Unavailable(missing[0])
        if not self.runs and not self.errors:
            raise RuntimeError(f"failed at every size: {self.notes[-1]}")
        return self._said(time.perf_counter() - start)

    def _try(self, problem: Problem) -> None:
        """Check one size, and keep it if it is right."""
        run = self.arm.make(problem, self.device, self.smoke)
        inputs = problem.draw(self.device)
        prepared = self._prepared(problem, inputs)
        with torch.no_grad():
            out = run(*prepared)
            judge = self.arm.error
            error = judge(problem, out, inputs) if judge else problem.error(out, inputs)
        self.errors[problem.name] = error if math.isfinite(error) else 1e9
        if isinstance(run, Told):
            self.facts[problem.name] |= run.facts
        if self.arm.facts:
            self.facts[problem.name] |= self.arm.facts(problem, inputs)
        if not error <= problem.tolerance:
            self.notes.append(f"{problem.name}: wrong, its output is {error:.3g} off, {problem.tolerance:g} allowed")
            return
        if problem.in_graph and self.device.type == "cuda":
            try:
                with torch.no_grad():
                    _recorded(run, [prepared])
            except Exception as error:
                torch.cuda.synchronize()
                self.eager.add(problem.name)
                self.notes.append(f"{problem.name}: timed as called from Python, since {first_line(error)}")
        self.runs[problem.name] = run

    def _said(self, seconds: float) -> dict[str, Any]:
        units = {name: self.problems[name].unit for name in self.runs}
        return {
            "label": self.arm.label, "right": bool(self.runs), "reason": "; ".join(self.notes), "warm_rounds": 0,
            "warm_s": seconds, "bytes": {}, "notes": self.notes,
            "check": {"error": self.errors, "tolerance": {n: self.problems[n].tolerance for n in self.errors}},
            "units": units,
            "shares": {n: {"ceiling": CEILINGS[unit], "per_unit": 1.0, "unit": unit} for n, unit in units.items()},
            "facts": {name: self.facts[name] | {"work": self.problems[name].work} for name in self.runs},
            "choose_best": getattr(self.family, "CHOOSES_BEST", False),
        }  # fmt: skip

    def round(self) -> dict[str, Any]:
        """One rate a size; a size that fails now (a neighbour may hold the room) is told and left out from here on."""
        start, values, dropped = time.perf_counter(), {}, []
        with peak_bytes(self.device) as peak, torch.no_grad():
            for name in list(self.runs):
                problem = self.problems[name]
                try:
                    values[name] = problem.work / self._seconds(problem) / PER_UNIT[problem.unit]
                except Exception as error:
                    del self.runs[name]
                    dropped.append(f"{name}: while timed: {type(error).__name__}: {first_line(error)}")
                _forget(self.device)  # neighbours need the room
        if not values:
            raise RuntimeError(f"failed at every size: {dropped[-1]}")
        seconds = time.perf_counter() - start
        return {"values": values, "seconds": seconds, "peak_bytes": peak.peak_bytes, "dropped": dropped}

    def close(self) -> None:
        """Nothing outlives the process."""

    def _seconds(self, problem: Problem) -> float:
        """Of one call among as many, one behind the other, as fill a moment: a GPU is then never idle between."""
        run = self.runs[problem.name]
        if problem.in_graph and self.device.type == "cuda" and problem.name not in self.eager:
            return self._seconds_in_graph(problem, run)
        inputs = self._prepared(problem, problem.draw(self.device))
        if problem.once:
            return seconds_of(lambda: run(*inputs), self.device)
        run(*inputs)
        once = max(seconds_of(lambda: run(*inputs), self.device), 1e-7)
        times = 1 if self.smoke else max(1, min(MOST_CALLS, int(ROUND_SECONDS / once)))
        if self.arm.ahead and self.device.type == "cuda":
            times = min(times, MOST_AHEAD)
            torch.cuda._sleep(int(CYCLES_PER_SECOND * AHEAD_SECONDS))
        return seconds_of(lambda: [run(*inputs) for _ in range(times)] and None, self.device) / times

    def _seconds_in_graph(self, problem: Problem, run: Any) -> float:
        copies = max(1, min(MOST_COPIES, math.ceil(CACHE_BYTES / max(1, problem.nbytes))))
        copies = math.ceil(copies / problem.turns) * problem.turns
        sets = [self._prepared(problem, problem.draw(self.device)) for _ in range(copies)]
        graph = _recorded(run, sets)
        graph.replay()
        once = max(seconds_of(graph.replay, self.device), 1e-7)
        times = max(3, min(MOST_CALLS, int(SMALL_ROUND_SECONDS / once)))
        return seconds_of(lambda: [graph.replay() for _ in range(times)] and None, self.device) / times / copies

    def _prepared(self, problem: Problem, inputs: Inputs) -> Inputs:
        return self.arm.prepare(problem, inputs) if self.arm.prepare else inputs


def _recorded(run: Any, sets: list[Inputs]) -> Any:
    """A CUDA graph of one call over each set of inputs; compiling and planning are done before."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for inputs in sets[:2]:
            run(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for inputs in sets:
            run(*inputs)
    return graph


def family_of(suite: Suite) -> Any:
    """The module of `benchmarks.arms` that has the suite's problems and arms."""
    return importlib.import_module(f"benchmarks.arms.{suite.family}")


def first_line(error: BaseException) -> str:
    """A compiler tells the place first and the matter last: both, where they differ."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[0][:160] if len(lines) < 3 else f"{lines[0][:160]} ... {lines[-1][:160]}"


def _forget(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
