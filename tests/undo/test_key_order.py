from __future__ import annotations

import itertools
from collections import OrderedDict

import pytest

from inference_pio.undo.key_order import KeyOrder, reorder
from inference_pio.undo.slots import ABSENT, MappingWrite, Slot

KEYS = ("a", "b", "c", "d")


def write(mapping: dict[str, int], key: str, value: object, order: KeyOrder) -> MappingWrite:
    entry = MappingWrite(Slot("", "attribute", key), mapping, key, value, order=order)
    entry.redo()
    return entry


@pytest.mark.parametrize("gone", list(itertools.permutations(KEYS, 3)))
def test_keys_come_back_to_their_places_whichever_deletion_is_taken_back_first(gone: tuple[str, ...]) -> None:
    for back in itertools.permutations(range(3)):
        table = dict.fromkeys(KEYS, 0)
        order = KeyOrder(table)
        entries = [write(table, key, ABSENT, order) for key in gone]
        for number in back:
            entries[number].undo()
        assert tuple(table) == KEYS


@pytest.mark.parametrize("kind", [dict, OrderedDict])
def test_deleting_and_setting_again_by_another_step_ends_in_the_old_order(kind: type[dict[str, int]]) -> None:
    for back in itertools.permutations(range(3)):
        table = kind((key, 0) for key in KEYS)
        order = KeyOrder(table)
        entries = [write(table, "b", ABSENT, order), write(table, "x", 5, order), write(table, "d", ABSENT, order)]
        for number in back:
            entries[number].undo()
        assert tuple(table) == KEYS


def test_a_key_that_somebody_else_adds_keeps_the_place_it_was_given() -> None:
    table = dict.fromkeys(KEYS, 0)
    order = KeyOrder(table)
    entry = write(table, "b", ABSENT, order)
    table["theirs"] = 1
    entry.undo()
    assert list(table) == ["a", "b", "c", "d", "theirs"]


def test_an_order_that_somebody_else_has_changed_is_theirs() -> None:
    table = dict.fromkeys(KEYS, 0)
    order = KeyOrder(table)
    entry = write(table, "c", ABSENT, order)
    reorder(table, ("d", "b", "a"))
    entry.undo()
    assert list(table) == ["d", "b", "c", "a"]


def test_a_key_behind_a_first_key_that_is_away_comes_first() -> None:
    table = dict.fromkeys(KEYS, 0)
    order = KeyOrder(table)
    first, second = write(table, "a", ABSENT, order), write(table, "b", ABSENT, order)
    second.undo()
    assert list(table) == ["b", "c", "d"]
    first.undo()
    assert tuple(table) == KEYS


def test_reordering_keeps_the_mapping_its_values_and_unnamed_keys() -> None:
    table = {"a": 1, "b": 2, "c": 3}
    same = table
    reorder(table, ("c", "gone", "a"))
    assert same is table
    assert list(table.items()) == [("c", 3), ("a", 1), ("b", 2)]


def test_a_new_key_may_come_before_all_others_and_comes_back_there() -> None:
    table = {"a": 1}
    entry = MappingWrite(Slot("", "hooks", "z"), table, "z", 0, first=True)
    entry.redo()
    assert list(table) == ["z", "a"]
    table["b"] = 2
    entry.undo()
    entry.redo()
    assert list(table) == ["z", "a", "b"]
