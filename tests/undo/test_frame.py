from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from inference_pio.errors import VaultError
from inference_pio.undo.frame import Frame
from inference_pio.undo.slots import MappingWrite, Slot


class Stubborn:
    """A write whose undo raises what it is told to, so many times, and then works."""

    def __init__(self, log: list[str], name: str, error: BaseException | None = None, times: int = 0) -> None:
        self.slot = Slot("", "attribute", name)
        self._log, self._error, self._times = log, error, times

    def redo(self) -> None:
        self._log.append(f"redo {self.slot}")

    def undo(self) -> None:
        if self._error is not None and self._times:
            self._times -= 1
            raise self._error
        self._log.append(str(self.slot))


def frame_of(*slots: tuple[str, str, str]) -> Frame:
    table: dict[str, int] = {}
    return Frame("f", entries=[MappingWrite(Slot(*slot), table, slot[2], 1) for slot in slots])


def test_a_step_stands_on_one_that_wrote_the_same_slot() -> None:
    one, other = frame_of(("a", "parameter", "weight")), frame_of(("a", "parameter", "weight"))
    assert other.stands_on(one)
    assert not other.commutes_with(one)
    assert one.commutes_with(frame_of(("a", "parameter", "bias")))


@pytest.mark.parametrize(
    ("path", "whole", "written", "stands"),
    [
        ("a.b", False, ("a.b", "attribute", "x"), True),
        ("a.b", False, ("a.b.c", "attribute", "x"), False),
        ("a.b", True, ("a.b.c", "attribute", "x"), True),
        ("a.b", True, ("a.bc", "attribute", "x"), False),
        ("a.b", False, ("a", "module", "b"), True),
        ("a.b", False, ("", "module", "a"), True),
        ("a.b", False, ("a", "module", "c"), False),
        ("", True, ("anything.at.all", "attribute", "x"), True),
        ("", False, ("", "attribute", "x"), True),
    ],
)
def test_a_step_stands_on_what_it_looked_at(
    path: str, whole: bool, written: tuple[str, str, str], stands: bool
) -> None:
    step = Frame("later")
    step.watch(path, whole)
    assert step.stands_on(frame_of(written)) is stands


def test_unwinding_goes_backwards_to_a_mark() -> None:
    log: list[str] = []
    frame = Frame("f", entries=[Stubborn(log, name) for name in "abc"])
    frame.unwind(1)
    assert log == ["c", "b"]
    assert len(frame.entries) == 1


def test_a_ctrl_c_while_unwinding_is_raised_when_all_is_taken_back() -> None:
    log: list[str] = []
    frame = Frame("f", entries=[Stubborn(log, "a"), Stubborn(log, "b", KeyboardInterrupt(), 2), Stubborn(log, "c")])
    with pytest.raises(KeyboardInterrupt):
        frame.unwind()
    assert log == ["c", "b", "a"]
    assert frame.entries == []


def test_a_write_that_raises_ctrl_c_for_ever_does_not_hang_the_undo_of_the_others() -> None:
    log: list[str] = []
    frame = Frame("f", entries=[Stubborn(log, "a"), Stubborn(log, "b", KeyboardInterrupt(), 10**9), Stubborn(log, "c")])
    with pytest.raises(VaultError, match="b could not be brought back"):
        frame.unwind()
    assert log == ["c", "a"]


@pytest.mark.parametrize("error", [MemoryError("none left"), OSError("busy"), RuntimeError("no room")])
def test_a_write_that_cannot_be_taken_back_yet_is_tried_again_after_the_others(error: Exception) -> None:
    log: list[str] = []
    Frame("f", entries=[Stubborn(log, "a"), Stubborn(log, "b", error, 1), Stubborn(log, "c")]).unwind()
    assert log == ["c", "a", "b"]


def test_a_write_that_never_can_be_taken_back_is_told_when_all_others_are() -> None:
    log: list[str] = []
    frame = Frame(
        "f", entries=[Stubborn(log, "a"), Stubborn(log, "b", MemoryError("none left"), 9), Stubborn(log, "c")]
    )
    with pytest.raises(VaultError, match=r"b could not be brought back.*none left.*Load it anew") as told:
        frame.unwind()
    assert log == ["c", "a"]
    assert isinstance(told.value.__cause__, MemoryError)


def test_closing_ends_what_was_opened_last_first_and_forgets_the_writes() -> None:
    log: list[str] = []
    closers: list[Callable[[], Any]] = [lambda: log.append("first"), lambda: log.append("second")]
    frame = Frame("f", entries=[Stubborn([], "a")], deferred=closers)
    frame.close()
    assert log == ["second", "first"]
    assert (frame.entries, frame.deferred) == ([], [])


def test_a_closer_that_fails_is_told_and_does_not_stop_the_others(caplog: pytest.LogCaptureFixture) -> None:
    log: list[str] = []

    def broken() -> None:
        raise OSError("the disk went away")

    with caplog.at_level(logging.ERROR, "inference_pio"):
        Frame("offload", deferred=[lambda: log.append("first"), broken]).close()
    assert log == ["first"]
    assert "offload was taken back, but something that it had opened could not be closed" in caplog.text


@pytest.mark.parametrize(
    ("slot", "moves"),
    [
        (("a", "attribute", "config"), False),
        (("a", "forward_hooks", "1"), False),
        (("a", "parameter", "weight"), True),
        (("a", "buffer", "scale"), True),
        (("", "module", "a"), True),
        (("", "attribute", "stream"), True),
    ],
)
def test_settings_and_hooks_move_no_bytes(slot: tuple[str, str, str], moves: bool) -> None:
    assert frame_of(slot).moves_bytes is moves
    assert Frame("f", entries=[Stubborn([], "rehoused")]).moves_bytes
