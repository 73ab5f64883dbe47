from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from inference_pio.undo.slots import (
    ABSENT,
    MappingWrite,
    MemberWrite,
    ModuleWrite,
    Slot,
    contents_of,
    storage_key,
    tensors_of,
)

SLOT = Slot("layers.0", "attribute", "b")


class Interrupted(dict[str, Any]):
    """A mapping whose n-th change is followed by a Ctrl-C."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.left = -1

    def _changed(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        self._changed()


def test_a_slot_reads_as_a_path() -> None:
    assert str(SLOT) == "layers.0.b"
    assert str(Slot("", "module", "lm_head")) == "lm_head"


def test_nothing_stays_one_thing_when_copied() -> None:
    assert copy.deepcopy(ABSENT) is ABSENT
    assert pickle.loads(pickle.dumps(ABSENT)) is ABSENT
    assert repr(ABSENT) == "nothing"


@pytest.mark.parametrize(("after", "written"), [(9, {"a": 1, "b": 9, "c": 3}), (ABSENT, {"a": 1, "c": 3})])
def test_a_write_is_taken_back_and_done_again_any_number_of_times(after: object, written: dict[str, int]) -> None:
    table = {"a": 1, "b": 2, "c": 3}
    entry = MappingWrite(SLOT, table, "b", after)
    for _ in range(2):
        entry.redo()
        entry.redo()
        assert list(table.items()) == list(written.items())
        entry.undo()
        entry.undo()
        assert list(table.items()) == [("a", 1), ("b", 2), ("c", 3)]


def test_a_key_that_was_not_there_goes_again_and_comes_back_to_its_place() -> None:
    table = {"a": 1}
    entry = MappingWrite(SLOT, table, "b", 2)
    entry.redo()
    table["later"] = 3
    entry.undo()
    assert table == {"a": 1, "later": 3}
    entry.redo()
    assert list(table) == ["a", "b", "later"]


def test_doing_again_brings_back_what_stood_even_a_foreign_value() -> None:
    table = {"b": 1}
    entry = MappingWrite(SLOT, table, "b", 2)
    entry.redo()
    table["b"] = 99
    entry.undo()
    assert table == {"b": 1}
    entry.redo()
    assert table == {"b": 99}


@pytest.mark.parametrize("changes", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("after", [ABSENT, 7])
def test_a_ctrl_c_within_an_undo_is_made_good_by_the_next_call(after: object, changes: int) -> None:
    start = [("a", 1), ("b", 2), ("c", 3), ("d", 4)]
    table = Interrupted(start)
    entry = MappingWrite(SLOT, table, "b", after)
    entry.redo()
    table.left = changes

    def to_and_fro() -> None:
        while table.left > 0:
            entry.undo()
            entry.redo()

    with pytest.raises(KeyboardInterrupt):
        to_and_fro()
    entry.undo()
    assert list(table.items()) == start


def test_a_ctrl_c_within_an_undo_can_also_be_followed_by_the_way_forward() -> None:
    table = Interrupted({"a": 1, "b": 2, "c": 3})
    entry = MappingWrite(SLOT, table, "b", ABSENT)
    entry.redo()
    table.left = 1
    with pytest.raises(KeyboardInterrupt):
        entry.undo()
    entry.redo()
    assert table == {"a": 1, "c": 3}
    entry.undo()
    assert list(table) == ["a", "b", "c"]


def test_a_name_enters_and_leaves_a_set() -> None:
    members = {"x"}
    entry = MemberWrite(SLOT, members, "b", True)
    entry.redo()
    assert members == {"x", "b"}
    entry.undo()
    entry.undo()
    assert members == {"x"}
    entry.redo()
    assert members == {"x", "b"}
    known = MemberWrite(SLOT, members, "x", True)
    known.redo()
    known.undo()
    assert "x" in members


def test_the_mode_set_on_a_stand_in_reaches_the_original() -> None:
    table: dict[str, nn.Module] = {"b": nn.Sequential(nn.Dropout()).eval()}
    original, stand_in = table["b"], nn.Identity().eval()
    entry = ModuleWrite(SLOT, table, "b", stand_in)
    entry.redo()
    stand_in.train()
    entry.undo()
    assert original.training
    assert original[0].training


def test_an_original_of_mixed_modes_keeps_them_where_nobody_set_the_mode() -> None:
    mixed = nn.Sequential(nn.Dropout(), nn.Dropout()).eval()
    mixed[1].train()
    table: dict[str, nn.Module] = {"b": mixed}
    entry = ModuleWrite(SLOT, table, "b", nn.Identity().eval())
    entry.redo()
    entry.undo()
    assert [part.training for part in mixed.modules()] == [False, False, True]


def test_tensors_of_gives_tied_ones_once_for_each_name() -> None:
    model = nn.ModuleList([nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2)])
    model[1].weight = model[0].weight
    assert len(list(tensors_of(model))) == 2 + 5
    assert len(list(contents_of(model))) == 3


def test_tensors_of_one_storage_have_one_key_and_meta_tensors_their_own() -> None:
    whole = torch.zeros(4)
    assert storage_key(whole) == storage_key(whole[2:])
    assert storage_key(whole) != storage_key(torch.zeros(4))
    shape = torch.zeros(4, device="meta")
    assert storage_key(shape) != storage_key(shape[2:])
    assert storage_key(torch.zeros(0)) != storage_key(torch.zeros(0, 3))
