"""What has to move, and that nothing else does."""

from __future__ import annotations

from inference_pio.plan.moves import Moves, Standing, moves_between
from inference_pio.plan.plan import PlannedStep
from inference_pio.undo.frame import Frame
from inference_pio.undo.slots import MappingWrite, Slot


def frame(name: str, writes: str, watches: str | None = None) -> Frame:
    made = Frame(name, [MappingWrite(Slot(writes, "attribute", name), {}, name, 1)])
    made.watch(writes if watches is None else watches, whole=True)
    return made


def planned(name: str, made: Frame, level: int = 1) -> PlannedStep:
    return PlannedStep(name, "compute", "computation", 100, "", {"level": level}, (), {}, None, 0, (), frame=made)


def standing(*steps: PlannedStep) -> list[Standing]:
    return [Standing(step.name, step.signature, step.frame) for step in steps]


A = planned("a", frame("a", "left"))
B = planned("b", frame("b", "right"))
ON_A = planned("on_a", frame("on_a", "middle", watches="left"))


def test_what_stands_as_planned_is_not_touched() -> None:
    assert moves_between(standing(A, B), [A, B]) == Moves((), (), ())


def test_the_first_apply_makes_everything() -> None:
    assert moves_between([], [A, B]) == Moves((), (), ("a", "b"))


def test_a_step_is_lifted_out_from_below_one_that_does_not_stand_on_it() -> None:
    assert moves_between(standing(A, B), [B]) == Moves(("a",), (), ())


def test_what_stands_on_a_step_that_goes_is_played_again() -> None:
    assert moves_between(standing(A, B, ON_A), [B, ON_A]) == Moves(("a",), ("on_a",), ("on_a",))


def test_changed_parameters_play_a_step_again_and_what_stands_on_it() -> None:
    changed = planned("a", A.frame, level=2)
    assert moves_between(standing(A, ON_A), [changed, ON_A]) == Moves((), ("a", "on_a"), ("a", "on_a"))


def test_a_new_step_that_commutes_goes_on_top() -> None:
    assert moves_between(standing(B), [A, B]) == Moves((), (), ("a",))


def test_a_new_step_that_belongs_below_one_that_reads_it_makes_that_one_move() -> None:
    assert moves_between(standing(ON_A, B), [A, ON_A, B]) == Moves((), ("on_a",), ("a", "on_a"))


def test_what_stands_on_what_stands_on_a_step_that_goes_moves_too() -> None:
    on_that = planned("on_that", frame("on_that", "top", watches="middle"))
    assert moves_between(standing(A, ON_A, B, on_that), [ON_A, B, on_that]) == Moves(
        ("a",), ("on_a", "on_that"), ("on_a", "on_that")
    )


def test_a_step_below_one_that_goes_stays() -> None:
    assert moves_between(standing(A, ON_A), [A]) == Moves(("on_a",), (), ())


def test_two_steps_planned_the_other_way_round_are_played_again_only_if_it_matters() -> None:
    assert moves_between(standing(A, B), [B, A]) == Moves((), (), ())
    assert moves_between(standing(A, ON_A), [ON_A, A]) == Moves((), ("a", "on_a"), ("on_a", "a"))


def test_nothing_wanted_takes_everything_back() -> None:
    moves = moves_between(standing(A, B, ON_A), [])
    assert moves == Moves(("a", "b", "on_a"), (), ())
    assert moves.taken_back == ("a", "b", "on_a")
