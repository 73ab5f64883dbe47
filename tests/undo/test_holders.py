from __future__ import annotations

from torch import nn

from inference_pio.undo.frame import Frame
from inference_pio.undo.holders import held_by_others, references_in, references_of
from inference_pio.undo.slots import MappingWrite, MemberWrite, Slot


class Thing:
    pass


def test_an_object_that_only_the_list_refers_to_is_not_held() -> None:
    assert held_by_others([Thing() for _ in range(50)], {}) == set()


def test_each_reference_beyond_the_known_ones_counts() -> None:
    objects: list[object] = [Thing() for _ in range(3)]
    outside = {"a": objects[1], "b": objects[2]}
    ids = list(map(id, objects))
    assert held_by_others(objects, {}) == {ids[1], ids[2]}
    assert held_by_others(objects, {ids[1]: 1}) == {ids[2]}
    assert held_by_others(objects, {ids[1]: 1, ids[2]: 1}) == set()
    assert len(outside) == 2
    assert len(objects) == 3


def test_counting_does_not_get_tired_of_being_called() -> None:
    """The interpreter rewrites code that runs often; the count must not change with it."""
    objects: list[object] = [Thing() for _ in range(3)]
    keeper = [objects[0]]
    for _ in range(500):
        assert held_by_others(objects, {}) == {id(keeper[0])}


def test_what_a_write_refers_to_is_what_it_really_keeps() -> None:
    owner, table = nn.Identity(), {"key": Thing()}
    entry = MappingWrite(Slot("", "attribute", "key"), table, "key", Thing(), owner)
    entry.redo()
    known = references_in([Frame("f", entries=[entry])])
    before: list[object] = [entry.before]
    assert held_by_others(before, known) == set()
    known[id(table["key"])] += 1  # the table itself
    after: list[object] = [entry.after]
    assert held_by_others(after, known) == set()


def test_a_write_in_a_set_refers_to_nothing_of_the_model() -> None:
    assert references_of(MemberWrite(Slot("", "non_persistent", "x"), set(), "x", True)) == []
