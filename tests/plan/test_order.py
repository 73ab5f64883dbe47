"""The order of steps: dependencies, then stages, then priority, then the name."""

from __future__ import annotations

import itertools

import pytest

from inference_pio.contract.optimization import Stage
from inference_pio.errors import DependencyCycle
from inference_pio.plan.order import in_order
from inference_pio.plan.target import Wanted

STAGES = {"cut": Stage.STRUCTURE, "pack": Stage.STORAGE, "fast": Stage.COMPUTATION, "fuse": Stage.COMPUTATION}


def target(*members: Wanted) -> dict[str, Wanted]:
    return {member.name: member for member in members}


@pytest.mark.parametrize("given", list(itertools.permutations(STAGES)))
def test_stages_come_first_and_names_break_ties_whatever_the_order_given(given: tuple[str, ...]) -> None:
    names, notes = in_order(target(*map(Wanted, given)), STAGES)
    assert names == ["cut", "pack", "fast", "fuse"]
    assert notes == []


def test_priority_orders_within_a_stage_lower_first() -> None:
    names, _ = in_order(target(Wanted("fast", priority=20), Wanted("fuse", priority=10)), STAGES)
    assert names == ["fuse", "fast"]


def test_priority_never_moves_a_step_over_a_stage_and_the_plan_says_so() -> None:
    names, notes = in_order(target(Wanted("fast", priority=1), Wanted("cut", priority=90)), STAGES)
    assert names == ["cut", "fast"]
    assert notes == ["priority 1 of fast does not move it before cut: structure comes before computation."]


def test_a_dependency_moves_a_step_over_a_stage_and_the_plan_says_so() -> None:
    names, notes = in_order(target(Wanted("cut", dependencies=("fast",)), Wanted("fast")), STAGES)
    assert names == ["fast", "cut"]
    assert "cut comes after fast, on which it depends" in notes[0]


def test_a_circle_is_named_and_what_is_outside_it_is_not() -> None:
    members = Wanted("fast", dependencies=("fuse",)), Wanted("fuse", dependencies=("fast",)), Wanted("cut")
    with pytest.raises(DependencyCycle, match="fast -> fuse -> fast") as caught:
        in_order(target(*members), STAGES)
    assert "cut" not in str(caught.value)


def test_what_only_needs_the_circle_is_not_taken_for_a_part_of_it() -> None:
    members = (
        Wanted("cut", dependencies=("fast",)), Wanted("fast", dependencies=("fuse",)),
        Wanted("fuse", dependencies=("fast",)),
    )  # fmt: skip
    with pytest.raises(DependencyCycle, match=r"circle: fast -> fuse -> fast\.$"):
        in_order(target(*members), STAGES)


def test_a_step_that_needs_itself_is_a_circle() -> None:
    with pytest.raises(DependencyCycle, match="cut -> cut"):
        in_order(target(Wanted("cut", dependencies=("cut",))), STAGES)


def test_a_long_chain_against_all_stages_is_followed_and_told_where_it_turns_back() -> None:
    stages = {"d": Stage.STRUCTURE, "c": Stage.STORAGE, "b": Stage.COMPUTATION, "a": Stage.PLACEMENT}
    members = [Wanted("a"), *(Wanted(name, dependencies=(need,)) for name, need in ("ba", "cb", "dc"))]
    names, notes = in_order(target(*members), stages)
    assert names == ["a", "b", "c", "d"]
    assert len(notes) == 3


def test_what_is_free_to_go_does_not_wait_for_a_dependency_of_a_later_stage() -> None:
    members = Wanted("cut", dependencies=("fuse",)), Wanted("fuse"), Wanted("pack"), Wanted("fast")
    assert in_order(target(*members), STAGES)[0] == ["pack", "fast", "fuse", "cut"]


def test_a_dependency_outside_the_target_is_no_reason_to_wait() -> None:
    assert in_order(target(Wanted("cut", dependencies=("elsewhere",))), STAGES) == (["cut"], [])


def test_negative_priorities_count_and_nothing_gives_nothing() -> None:
    assert in_order(target(Wanted("fast"), Wanted("fuse", priority=-1)), STAGES)[0] == ["fuse", "fast"]
    assert in_order({}, STAGES) == ([], [])
