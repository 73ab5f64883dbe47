"""Who goes, by what a table says of each set of steps: the tables are cases that no one model shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from torch import nn

from inference_pio.configuration import QualityBounds
from inference_pio.contract.config import OptimizationType
from inference_pio.contract.optimization import OptimizationInterface, Stage
from inference_pio.contract.site import Site
from inference_pio.errors import NoEffect, NothingApplied, QualityBroken
from inference_pio.integration.attribution import Attribution, Found
from inference_pio.manager import get_optimization_manager
from inference_pio.plan.target import Wanted
from tests import tiny

COMPRESSION, FLASH, FUSION = "tensor_compression", "flash_attention", "kernel_fusion"
NAMES = (COMPRESSION, FLASH, FUSION)
Table = Callable[[set[str]], float]


def settled(
    table: Table, most: float = 0.1, orders: tuple[str, ...] = (), needs: dict[str, tuple[str, ...]] | None = None
) -> tuple[Attribution, nn.Module, list[set[str]]]:
    """A tiny model settled where each set of steps costs what the table says; and the sets that were judged."""
    model, seen = tiny.build("llama"), []
    manager = get_optimization_manager()

    def judge() -> Found:
        here = set(manager.get_model_optimizations(model))
        seen.append(here)
        return Found(table(here), 1.0)

    wanted = [
        Wanted(name, order=name in orders, dependencies=(needs or {}).get(name, ()), source="a test") for name in NAMES
    ]
    run = Attribution(
        model, wanted, "a profile", judge, lambda found: f"{found.kl:.2f} is too much" if found.kl > most else None
    )
    run.settle()
    assert set(manager.get_model_optimizations(model)) == set(NAMES) - set(run.taken_back)
    return run, model, seen


def by_sum(**costs: float) -> Table:
    return lambda here: sum(costs.get(name, 0.0) for name in here)


def test_where_all_holds_it_is_judged_once_and_nothing_is_touched() -> None:
    run, _, seen = settled(by_sum(tensor_compression=0.1))
    assert seen == [set(NAMES)]
    assert (run.costs, run.taken_back) == ((), {})


def test_the_one_that_costs_most_goes_first_and_the_rest_stays_where_that_is_enough() -> None:
    run, model, _ = settled(by_sum(tensor_compression=0.08, flash_attention=0.3, kernel_fusion=0.001))
    assert list(run.taken_back) == [FLASH]
    assert {cost.name: round(cost.kl_bought, 9) for cost in run.costs} == {COMPRESSION: 0.08, FLASH: 0.3, FUSION: 0.001}
    assert next(cost for cost in run.costs if cost.name == COMPRESSION).weight_bytes_saved > 0
    status = get_optimization_manager().get_optimization_status(model)
    assert status["profile"] == "a profile"
    (left,) = status["skipped"]
    assert left["name"] == FLASH
    assert (
        "taken back by the quality guard: 0.38 is too much; without it the KL is 0.3 nats/token less" in left["reason"]
    )


def test_they_go_one_after_the_other_until_it_holds() -> None:
    run, _, _ = settled(by_sum(tensor_compression=0.3, flash_attention=0.2, kernel_fusion=0.1))
    assert list(run.taken_back) == [COMPRESSION, FLASH]


def test_of_two_that_spoil_the_same_both_are_found_and_the_innocent_stays() -> None:
    """The removal of either buys nothing, and that of the innocent a little, by chance."""

    def table(here: set[str]) -> float:
        return (0.5 if here & {COMPRESSION, FUSION} else 0.0) + (0.001 if FLASH in here else 0.0)

    run, _, _ = settled(table)
    assert set(run.taken_back) == {COMPRESSION, FUSION}
    first, second = run.taken_back.values()
    assert "no one's removal helps, and with it alone the KL is 0.5 nats/token" in first
    assert "without it the KL is 0.5 nats/token less" in second


def test_a_bound_of_the_perplexity_alone_takes_back_who_raises_it_not_who_diverges_most() -> None:
    model, manager = tiny.build("llama"), get_optimization_manager()
    costs = {COMPRESSION: Found(0.05, -0.01), FLASH: Found(0.01, 0.04), FUSION: Found(0.0, 0.0)}

    def judge() -> Found:
        here = [costs[name] for name in manager.get_model_optimizations(model)]
        return Found(sum(one.kl for one in here), 1 + sum(one.perplexity_ratio for one in here))

    bounds = QualityBounds(max_perplexity_ratio=1.02)
    run = Attribution(
        model, [Wanted(name, order=False) for name in NAMES], "a profile", judge,
        lambda found: bounds.broken_by(*found), lambda found: bounds.judged_by(found.kl),
    )  # fmt: skip
    run.settle()
    assert list(run.taken_back) == [FLASH]
    assert run.taken_back[FLASH].endswith(
        "above max_perplexity_ratio=1.02; without it the perplexity ratio is 0.04 less"
    )


def test_a_step_goes_with_those_that_need_it() -> None:
    run, _, _ = settled(by_sum(flash_attention=0.3), needs={FUSION: (FLASH,)})
    assert run.taken_back[FUSION] == "taken back by the quality guard with flash_attention, which it needs"
    assert set(run.taken_back) == {FLASH, FUSION}


def test_an_order_that_breaks_the_bound_alone_raises_with_its_cost() -> None:
    with pytest.raises(
        QualityBroken, match=r"tensor_compression costs KL 0\.3 nats/token .*Leave tensor_compression"
    ) as error:
        settled(by_sum(tensor_compression=0.3, flash_attention=0.2), orders=(COMPRESSION,))
    assert error.value.steps == (COMPRESSION,)


def test_an_order_that_costs_most_stays_where_a_wish_can_go_in_its_place() -> None:
    run, _, _ = settled(by_sum(tensor_compression=0.09, flash_attention=0.05), orders=(COMPRESSION,))
    assert list(run.taken_back) == [FLASH]


def test_what_an_order_needs_stays_with_it() -> None:
    costs = by_sum(flash_attention=0.09, tensor_compression=0.05)
    run, _, _ = settled(costs, orders=(FUSION,), needs={FUSION: (FLASH,)})
    assert list(run.taken_back) == [COMPRESSION]
    with pytest.raises(QualityBroken):
        settled(by_sum(flash_attention=0.3), orders=(FUSION,), needs={FUSION: (FLASH,)})


def test_who_went_for_its_own_cost_is_told_so_when_what_it_needs_goes_later() -> None:
    model, manager = tiny.build("llama"), get_optimization_manager()
    costs = {frozenset(NAMES): 0.5, frozenset((FLASH, FUSION)): 0.45, frozenset((COMPRESSION, FLASH)): 0.2,
             frozenset((COMPRESSION,)): 0.3, frozenset((FLASH,)): 0.15, frozenset(): 0.0}  # fmt: skip
    wanted = [Wanted(name, order=False, dependencies=(FLASH,) if name == FUSION else ()) for name in NAMES]
    run = Attribution(
        model, wanted, "a profile", lambda: Found(costs[frozenset(manager.get_model_optimizations(model))], 1.0),
        lambda found: f"{found.kl:g} is too much" if found.kl > 0.1 else None,
    )  # fmt: skip
    with pytest.raises(NothingApplied, match=r"kernel_fusion: taken back by the quality guard: 0\.5 is too much"):
        run.settle()
    assert list(run.taken_back) == [FUSION, COMPRESSION, FLASH]


def test_a_member_that_was_off_is_not_taken_back_with_what_it_needs() -> None:
    model, manager = tiny.build("llama"), get_optimization_manager()
    wanted = [
        Wanted(FLASH, order=False), Wanted(FUSION, order=False, off="not here", dependencies=(FLASH,)),
        Wanted(COMPRESSION, order=False),
    ]  # fmt: skip

    def judge() -> Found:
        return Found(0.3 if FLASH in manager.get_model_optimizations(model) else 0.0, 1.0)

    run = Attribution(model, wanted, "a profile", judge, lambda found: "too much" if found.kl > 0.1 else None)
    run.settle()
    assert set(run.taken_back) == {FLASH}
    skipped = manager.get_optimization_status(model)["skipped"]
    assert {one["name"]: one["reason"] for one in skipped}[FUSION] == "not here"


def test_what_an_order_needs_is_judged_with_its_own_parameters() -> None:
    model, manager, seen = tiny.build("llama"), get_optimization_manager(), []
    wanted = [
        Wanted(COMPRESSION, {"format": "int4", "group_size": 32}, order=False),
        Wanted(FUSION, dependencies=(COMPRESSION,)), Wanted(FLASH, order=False),
    ]  # fmt: skip

    def judge() -> Found:
        applied = {receipt.name: receipt.parameters for receipt in manager.get_receipts(model)}
        seen.extend(applied[COMPRESSION]["format"] for _ in [0] if COMPRESSION in applied)
        return Found(0.3 if FLASH in applied else 0.0, 1.0)

    Attribution(model, wanted, "a profile", judge, lambda found: "too much" if found.kl > 0.1 else None).settle()
    assert set(seen) == {"int4"}


class Idle(OptimizationInterface):
    """A step that finds only on the live model that there is nothing to do."""

    name = "idle"
    optimization_type = OptimizationType.COMPUTE

    def sites(self, model: nn.Module) -> list[Site]:
        return [Site("model.norm", "norm")]

    def decide_from_data(self, model: nn.Module, sites: Sequence[Site], decision: dict[str, Any]) -> dict[str, Any]:
        raise NoEffect("the data leave nothing to do.")

    def apply(self, model: nn.Module) -> nn.Module:
        self.journal.set(model.get_submodule("model.norm"), "idle", True)
        return model


def test_who_goes_is_told_where_what_is_left_finds_nothing_to_do() -> None:
    model, manager = tiny.build("llama"), get_optimization_manager()
    manager.register_optimization(Idle)
    try:
        run = Attribution(
            model, [Wanted(FLASH, order=False), Wanted("idle", order=False)], "a profile",
            lambda: Found(0.3 * len(manager.get_model_optimizations(model)), 1.0),
            lambda found: "too much" if found.kl > 0.1 else None,
        )  # fmt: skip
        with pytest.raises(NothingApplied, match="flash_attention: taken back by the quality guard: too much"):
            run.settle()
    finally:
        manager.registry.unregister("idle")


def test_what_was_switched_off_stays_off() -> None:
    manager, model = get_optimization_manager(), tiny.build("llama")
    wanted = [Wanted(COMPRESSION, order=False, off="not here"), Wanted(FLASH, order=False)]
    Attribution(model, wanted, "a profile", lambda: Found(0.0, 1.0), lambda found: None).settle()
    assert manager.get_model_optimizations(model) == [FLASH]


class Beside(OptimizationInterface):
    """A step that applies only where attention was switched already."""

    name = "beside"
    optimization_type = OptimizationType.COMPUTE
    stage = Stage.PLACEMENT

    def sites(self, model: nn.Module) -> list[Site]:
        there = any(name.endswith("self_attn") and "is_fast" in vars(part) for name, part in model.named_modules())
        return [Site("model.norm", "norm", skip=None if there else "attention is plain")]

    def apply(self, model: nn.Module) -> nn.Module:
        self.journal.set(model.get_submodule("model.norm"), "beside", True)
        return model


class Fast(OptimizationInterface):
    """What it applies beside."""

    name = "fast"
    optimization_type = OptimizationType.ATTENTION

    def sites(self, model: nn.Module) -> list[Site]:
        return [Site("model.layers.0.self_attn", "attention")]

    def apply(self, model: nn.Module) -> nn.Module:
        self.journal.set(model.get_submodule("model.layers.0.self_attn"), "is_fast", True)
        return model


@pytest.mark.parametrize("enough", [True, False])
def test_a_wish_that_an_order_applies_beside_stays_and_another_goes(enough: bool) -> None:
    model, manager = tiny.build("llama"), get_optimization_manager()
    manager.register_optimization(Beside)
    manager.register_optimization(Fast)
    costs = {"fast": 0.3, COMPRESSION: 0.2}
    try:
        wanted = [Wanted("beside"), Wanted("fast", order=False)] + [Wanted(COMPRESSION, order=False)] * enough
        run = Attribution(
            model, wanted, "a profile",
            lambda: Found(sum(costs.get(name, 0.0) for name in manager.get_model_optimizations(model)), 1.0),
            lambda found: "too much" if found.kl > 0.35 - 0.1 * (not enough) else None,
        )  # fmt: skip
        if enough:
            run.settle()
            assert list(run.taken_back) == [COMPRESSION]
            assert manager.get_model_optimizations(model) == ["fast", "beside"]
        else:
            with pytest.raises(QualityBroken, match="does not apply without fast"):
                run.settle()
    finally:
        manager.registry.unregister("beside")
        manager.registry.unregister("fast")
