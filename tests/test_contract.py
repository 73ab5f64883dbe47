"""The contract, swept over every registered optimization and every tiny model: a new file is swept in by itself."""

from __future__ import annotations

import gc
import itertools
import json
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import nn

from inference_pio.errors import NoEffect
from inference_pio.manager import ModularOptimizationManager
from inference_pio.measure.freed_memory import return_freed_memory
from inference_pio.undo.fingerprint import fingerprint
from inference_pio.undo.journal import Journal
from tests import tiny
from tests.sweep import NAMES, PAIRS, Case, Marker, rotating, turn_of_this_commit

EACH = pytest.mark.parametrize("optimization", NAMES)
EVERY_WRITE = "qwen3_moe"
"""On this model `make test` lets every write of a third of the optimizations fail, by turns; elsewhere a spread of 4,
another one in each commit. `make verify` lets all of them fail."""
SPREAD = 4
ON_EACH_MODEL = pytest.mark.parametrize("model_name", list(tiny.TINY))
HALF_IN_TURN = pytest.mark.parametrize(
    ("optimization", "model_name"),
    [
        pytest.param(*cell, marks=[] if (place + turn_of_this_commit()) % 2 else [pytest.mark.slow], id="-".join(cell))
        for place, cell in enumerate(itertools.product(NAMES, tiny.TINY))
    ],
)
"""Each optimization on each model: half of them in a commit's `make test`, the others in the next one's."""


@EACH
@ON_EACH_MODEL
def test_undo_gives_back_the_same_objects_and_the_same_bits(optimization: str, model_name: str) -> None:
    case = Case(model_name)
    if not case.apply(optimization):
        return
    assert fingerprint(case.model).differences(case.before) != []
    case.manager.remove_optimizations(case.model, [optimization])
    case.check_untouched()


@HALF_IN_TURN
def test_undo_is_exact_in_bfloat16_too(optimization: str, model_name: str) -> None:
    case = Case(model_name, torch.bfloat16)
    if case.apply(optimization):
        case.manager.remove_optimizations(case.model)
        case.check_untouched()


@pytest.mark.parametrize("pair", rotating(PAIRS, turn_of_this_commit(), count=1))
@pytest.mark.parametrize("first_out", [0, 1])
@pytest.mark.parametrize("together", [True, False])
@ON_EACH_MODEL
def test_pairs_come_off_in_any_order(pair: tuple[str, str], first_out: int, together: bool, model_name: str) -> None:
    case = Case(model_name)
    calls = [pair] if together else [(pair[1],), (pair[0],)]  # one call, or two in the order that plans turn round
    if not all(case.apply(*names) for names in calls):
        case.manager.remove_optimizations(case.model)
        case.check_untouched()
        return
    both = tiny.logits(case.model, model_name)
    first, second = pair[first_out], pair[1 - first_out]
    case.manager.remove_optimizations(case.model, [first])
    assert case.manager.get_model_optimizations(case.model) == [second]
    alone = Case(model_name)
    alone.apply(second)
    assert torch.equal(tiny.logits(case.model, model_name), tiny.logits(alone.model, model_name))
    case.apply(first)
    assert torch.equal(tiny.logits(case.model, model_name), both)
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


@HALF_IN_TURN
def test_a_second_model_of_the_same_config_is_untouched(optimization: str, model_name: str) -> None:
    case = Case(model_name)
    config = getattr(case.model, "config", None)
    second = tiny.build(model_name, config=config) if config is not None else tiny.build(model_name)
    assert config is None or second.config is config
    before, logits = fingerprint(second), tiny.logits(second, model_name)
    case.before = fingerprint(case.model)
    case.apply(optimization)
    assert before.differences(fingerprint(second)) == []
    assert torch.equal(tiny.logits(second, model_name), logits)
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


class _Injected(Exception):
    pass


ERRORS: list[type[BaseException]] = [_Injected, KeyboardInterrupt, torch.OutOfMemoryError]


def _failures() -> Iterator[Any]:
    """Each optimization on each model, by every write and with each error; in a commit's `make test` with one of the
    three, each in its turn, and by a spread of the writes where not every one has its turn."""
    turn = turn_of_this_commit()
    for place, (model_name, optimization) in enumerate(itertools.product(tiny.TINY, NAMES)):
        whole = model_name == EVERY_WRITE and (place + turn) % 3 == 0
        for number, error in enumerate(ERRORS):
            taken = (place + turn // 3) % len(ERRORS) == number
            said = f"{optimization}-{error.__name__}"
            marks = [] if taken and whole else [pytest.mark.slow]
            yield pytest.param(optimization, model_name, None, error, marks=marks, id=f"{model_name}-every-{said}")
            if taken and not whole:
                yield pytest.param(optimization, model_name, SPREAD, error, id=f"{model_name}-spread-{said}")


@pytest.mark.parametrize(("optimization", "model_name", "most", "error"), list(_failures()))
def test_a_failure_at_any_write_leaves_the_model_as_it_was(
    optimization: str, model_name: str, most: int | None, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(model_name)
    write, writes = Journal._write, [0]

    def counting(journal: Journal, entry: Any) -> None:
        writes[0] += 1
        write(journal, entry)

    monkeypatch.setattr(Journal, "_write", counting)
    forecast = writes[0] if not case.apply(optimization) else _undo_and_count(case, writes)
    for fatal in _spread(forecast, most or forecast):
        for after in (False, True):
            _fail_at(monkeypatch, write, fatal, error, after)
            with pytest.raises(error):
                case.manager.apply_optimizations(case.model, [optimization])
            monkeypatch.setattr(Journal, "_write", write)
            assert case.before.differences(fingerprint(case.model)) == []
    case.check_untouched()


def _undo_and_count(case: Case, writes: list[int]) -> int:
    total = writes[0]
    case.manager.remove_optimizations(case.model)
    return total


def _spread(total: int, most: int) -> list[int]:
    """Every write where there are few, else the first, the last and some between that move on with each commit."""
    if total <= max(most, 1):
        return list(range(1, total + 1))
    between, turn = total - 2, turn_of_this_commit()
    return sorted({1, total, *(2 + (step * between // (most - 2) + turn) % between for step in range(most - 2))})


def _fail_at(monkeypatch: pytest.MonkeyPatch, write: Any, fatal: int, error: type[BaseException], after: bool) -> None:
    count = [0]

    def failing(journal: Journal, entry: Any) -> None:
        count[0] += 1
        if count[0] == fatal and not after:
            raise error("injected")
        write(journal, entry)
        if count[0] == fatal:
            raise error("injected")

    monkeypatch.setattr(Journal, "_write", failing)


@EACH
def test_having_no_effect_is_told_with_the_reason(optimization: str) -> None:
    empty = nn.Sequential(nn.ReLU())
    with pytest.raises(NoEffect, match=optimization):
        ModularOptimizationManager().apply_optimizations(empty, [optimization])


@EACH
def test_settings_survive_a_round_trip(optimization: str) -> None:
    made = ModularOptimizationManager().registry.create(optimization)
    data = json.loads(json.dumps(made.parameters.model_dump(mode="json")))
    assert ModularOptimizationManager().registry.create(optimization, data).parameters == made.parameters


@HALF_IN_TURN
def test_applied_twice_equals_applied_once(optimization: str, model_name: str) -> None:
    case = Case(model_name)
    if not case.apply(optimization):
        return
    once = fingerprint(case.model)
    case.apply(optimization)
    assert once.differences(fingerprint(case.model)) == []
    case.manager.remove_optimizations(case.model)
    case.check_untouched()


@HALF_IN_TURN
def test_planning_touches_nothing_and_forecasts_what_is_done(optimization: str, model_name: str) -> None:
    case = Case(model_name)
    try:
        plan = case.manager.plan(case.model, [optimization])
    except NoEffect:
        case.check_untouched()
        return
    case.check_untouched()
    case.apply(optimization)
    receipt = case.manager.get_receipts(case.model)[0]
    assert [site.path for site in plan.steps[0].acting] == [site.path for site in receipt.acted]
    assert plan.weight_bytes_after == receipt.weight_bytes_after
    assert receipt.decision | plan.steps[0].decision == receipt.decision
    json.dumps([plan.to_json(), receipt.to_json()])


@HALF_IN_TURN
def test_deleting_an_optimized_model_frees_it(optimization: str, model_name: str, own_cache: Path) -> None:
    case = Case(model_name)
    case.apply(optimization)
    model = weakref.ref(case.model)
    del case
    gc.collect()
    assert model() is None
    assert list((own_cache / "undo").glob("*")) == []


CYCLES = 30
"""For a third of the optimizations in a commit's `make test`; in `make verify` 300 for all of them."""


@pytest.mark.parametrize(
    ("optimization", "cycles"),
    [
        pytest.param(
            name,
            count,
            marks=[] if count == CYCLES and (place + turn_of_this_commit()) % 4 == 0 else [pytest.mark.slow],
        )
        for place, name in enumerate(NAMES)
        for count in (CYCLES, 300)
    ],
)
def test_cycles_leak_nothing(optimization: str, cycles: int, own_cache: Path) -> None:
    case = Case("llama")
    process = psutil.Process()

    def cycle() -> None:
        case.apply(optimization)
        case.manager.remove_optimizations(case.model)

    for _ in range(3):
        cycle()
    for _ in range(3):  # what is let go by what is collected first would be counted against what leaks later
        return_freed_memory()
    objects, files, threads = len(gc.get_objects()), process.num_fds(), threading.active_count()
    resident = process.memory_info().rss
    for _ in range(cycles):
        cycle()
    return_freed_memory()
    assert len(gc.get_objects()) - objects < cycles / 2
    assert process.memory_info().rss - resident < 2**24  # 16 MB, and the model alone has 0.5
    assert (process.num_fds(), threading.active_count()) == (files, threads)
    assert list((own_cache / "undo").glob("*")) == []
    case.check_untouched()


@ON_EACH_MODEL
def test_an_outsiders_fifteen_lines_are_undone_like_ours(model_name: str) -> None:
    case = Case(model_name)
    case.manager.register_optimization(Marker)
    case.apply("marker", *NAMES[:1])
    case.manager.remove_optimizations(case.model)
    case.apply("marker")
    assert not torch.equal(tiny.logits(case.model, model_name), case.logits)
    case.manager.remove_optimizations(case.model)
    case.check_untouched()
