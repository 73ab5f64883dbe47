"""A tensor that waits looks as it will; what a failed loading takes back gets no bytes."""

from __future__ import annotations

import torch
from torch import nn

from inference_pio.plan.skeleton import skeleton_of
from inference_pio.undo.awaited import MARK, Awaited, awaited_of, loading, origin_of
from inference_pio.undo.parked import Parked, View, bytes_of, checksum_of
from inference_pio.undo.stored_bytes import stored_bytes
from inference_pio.undo.tensors import point
from inference_pio.undo.vault import Vault


def waiting(values: torch.Tensor) -> nn.Parameter:
    view = View.of(values)
    data, raw = view.stand_in(), bytes_of(values)
    tensor = nn.Parameter(data)
    setattr(tensor, MARK, Awaited(view, (), lambda target: raw, lambda: raw, data))
    return tensor


def test_it_looks_as_it_will_and_is_counted_so() -> None:
    model, values = nn.Linear(3, 2, bias=False), torch.randn(2, 3)
    model.weight = waiting(values)
    assert View.of(model.weight).stride == (3, 1)
    assert stored_bytes(model) == values.nbytes
    assert skeleton_of(model).weight.stride() == (3, 1)
    assert torch.equal(bytes_of(model.weight), bytes_of(values))


def test_who_is_pointed_elsewhere_waits_no_more() -> None:
    tensor = waiting(torch.randn(2, 3))
    point(tensor, torch.zeros(2, 3))
    assert awaited_of(tensor) is None
    assert origin_of(tensor) is None


def test_what_has_just_been_read_is_parked_where_it_was_read_from() -> None:
    values = torch.randn(2, 3)
    tensor = waiting(values)
    mark = awaited_of(tensor)
    assert mark is not None
    tensor.data, mark.here = values, True
    parked = Vault("auto").park([tensor], {})
    assert parked.load is mark.again
    assert parked.checksum == checksum_of(bytes_of(values))
    assert torch.equal(parked.fetch()[0], values)


def parked(values: torch.Tensor) -> Parked:
    return Parked((View.of(values),), "", lambda: bytes_of(values), checksum_of(bytes_of(values)), values.nbytes)


def test_a_model_that_was_not_loaded_to_its_end_is_not_filled_by_an_undo() -> None:
    values = torch.randn(2, 3)
    with loading():
        inside = parked(values)
        (shown,) = inside.fetch()
        assert torch.isnan(shown).all()
        assert shown.untyped_storage().nbytes() == values.element_size()
    assert torch.equal(inside.fetch()[0], values)


def test_another_model_gets_its_bytes_back_while_one_loads() -> None:
    values = torch.randn(2, 3)
    before = parked(values)
    with loading():
        mine = parked(values)
        with loading():
            assert torch.equal(before.fetch()[0], values)
            assert torch.equal(mine.fetch()[0], values)
        assert torch.isnan(mine.fetch()[0]).all()
