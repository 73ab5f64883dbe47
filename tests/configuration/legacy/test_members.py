from __future__ import annotations

from inference_pio.configuration.legacy.members import Member, word


def test_values_are_told_as_a_file_holds_them() -> None:
    assert [word(value) for value in (True, False, 3, "a")] == ["true", "false", "3", "'a'"]


def test_members_share_nothing() -> None:
    one, two = Member("one", True), Member("two", True)
    one.places["a"] = True
    assert (two.places, two.given) == ({}, [])
