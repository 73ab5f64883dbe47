"""Slots keep their addresses while steps go by."""

from __future__ import annotations

import torch

from inference_pio.decoding.slots import Slots


def test_a_step_enters_and_leaves_in_place() -> None:
    slots = Slots(2, 3, torch.device("cpu"))
    addresses = [tensor.data_ptr() for tensor in slots.kept()]
    slots.begin(torch.tensor([5, 6]), torch.tensor([9, 7]), length=9, made=1, starts=torch.tensor([0, 2]))
    slots.enter()
    assert slots.lengths.item() == 10
    slots.leave(torch.tensor([11, 12]), 1)
    assert slots.tokens.tolist() == [11, 12]
    assert slots.given.tolist() == [[0, 11, 0], [0, 12, 0]]
    assert slots.positions.tolist() == [10, 8]
    assert (slots.made.item(), slots.starts.tolist()) == (2, [0, 2])
    assert [tensor.data_ptr() for tensor in slots.kept()] == addresses


def test_a_call_without_padding_forgets_that_of_the_last() -> None:
    slots = Slots(2, 1, torch.device("cpu"))
    slots.begin(torch.zeros(2), torch.zeros(2), length=4, made=1, starts=torch.tensor([0, 2]))
    slots.begin(torch.zeros(2), torch.zeros(2), length=4, made=1)
    assert slots.starts.tolist() == [0, 0]


def test_tokens_are_marked_from_where_they_count_and_as_they_come() -> None:
    slots = Slots(2, 1, torch.device("cpu"))
    slots.mark(torch.tensor([[1, 2, 3], [4, 4, 5]]), 8, torch.tensor([1, 0]))
    assert slots.seen is not None
    assert [row.nonzero().flatten().tolist() for row in slots.seen] == [[2, 3], [4, 5]]
    slots.leave(torch.tensor([7, 1]), 0)
    assert [row.nonzero().flatten().tolist() for row in slots.seen] == [[2, 3, 7], [1, 4, 5]]
    first = slots.seen
    slots.mark(torch.tensor([[1, 2], [0, 3]]), 8, 1)
    assert slots.seen is first
    assert [row.nonzero().flatten().tolist() for row in slots.seen] == [[2], [3]]
    slots.mark(torch.tensor([[3, 3], [0, 0]]), 8)
    assert [row.nonzero().flatten().tolist() for row in slots.seen] == [[3], [0]]
