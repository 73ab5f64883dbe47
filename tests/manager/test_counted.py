"""What an optimization's parts count while the model runs is told by the status, also for a copy of the model."""

from __future__ import annotations

import copy
import json
from typing import Any

from torch import nn

from tests import tiny
from tests.sweep import Case, Marker


class Tally:
    """A count that follows a model into its copies."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, *_: Any) -> None:
        self.calls += 1


class Counting(Marker):
    name = "counting"

    def apply(self, model: nn.Module) -> nn.Module:
        last, tally = list(model.modules())[-1], Tally()
        self.journal.set(last, "tally", tally)
        self.journal.hook(last, "forward", tally)
        return model

    def report(self, model: nn.Module) -> dict[str, Any]:
        return {"calls": list(model.modules())[-1].tally.calls}


def test_what_is_counted_is_told_under_the_optimizations_name() -> None:
    case = Case("llama")
    case.manager.register_optimization(Counting)
    case.apply("counting", "flash_attention")
    assert case.manager.get_optimization_status(case.model)["optimizations"]["counting"]["counted"] == {"calls": 0}
    tiny.logits(case.model, "llama")
    status = case.manager.get_optimization_status(case.model)
    assert status["optimizations"]["counting"]["counted"] == {"calls": 2}
    told = {one["name"]: one.get("counted") for one in status["applied_optimizations"]}
    assert told == {"counting": {"calls": 2}, "flash_attention": None}
    assert json.loads(json.dumps(status)) == status
    case.manager.remove_optimizations(case.model)
    assert "counted" not in case.manager.get_optimization_status(case.model)["optimizations"]["counting"]
    case.check_untouched()


def test_a_copy_counts_for_itself() -> None:
    case = Case("llama")
    case.manager.register_optimization(Counting)
    case.apply("counting")
    twin = copy.deepcopy(case.model)
    tiny.logits(twin, "llama")
    for model, calls in ((case.model, 0), (twin, 2)):
        status = case.manager.get_optimization_status(model)
        assert status["optimizations"]["counting"]["counted"] == {"calls": calls}
