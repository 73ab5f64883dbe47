"""Calls that are kept by what their tensors look like."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from inference_pio.kernels.block_sparse import BlockList
from inference_pio.kernels.triton.kept_calls import Form, KeptCalls, form_of, serve_again


def tensors(**how: Any) -> dict[str, Any]:
    query, key, value = (torch.zeros(1, 37, heads, 64, dtype=torch.bfloat16).transpose(1, 2) for heads in (4, 2, 2))
    nothing = {"causal": True, "starts": None, "lists": None, "lse": None}
    return {"query": query, "key": key, "value": value, "out": None, **nothing, **how}


def form(**how: Any) -> Form:
    return form_of(**tensors(**how))


def lists(key_block: int) -> BlockList:
    return BlockList.from_kept(torch.ones(1, 4, 1, 1, dtype=torch.bool), 128, key_block)


def test_tensors_that_look_alike_have_one_form_whatever_they_hold() -> None:
    assert form() == form()
    assert form(lse=torch.zeros(1, 4, 37)) == form(lse=torch.ones(1, 4, 37))
    assert form(starts=torch.zeros(1)) == form(starts=torch.ones(1))
    assert form(lists=lists(64)) == form(lists=lists(64))


@pytest.mark.parametrize("name", ["query", "key", "value", "out"])
@pytest.mark.parametrize("changed", [lambda x: x.half(), lambda x: x[:, :, 1:], lambda x: x.contiguous(),
                                     lambda x: x.to("meta")])  # fmt: skip
def test_another_tensor_is_another_form(name: str, changed: Callable[[Any], Any]) -> None:
    given = tensors(out=torch.zeros(1, 37, 4, 64, dtype=torch.bfloat16).transpose(1, 2))
    assert form(**given | {name: changed(given[name])}) != form(**given)


def test_another_wish_is_another_form() -> None:
    wishes: list[dict[str, Any]] = [
        {}, {"causal": False}, {"out": torch.zeros(1, 4, 37, 64)}, {"starts": torch.zeros(1, dtype=torch.int32)},
        {"starts": torch.zeros(1, dtype=torch.int64)}, {"lse": torch.zeros(1, 4, 37)}, {"lists": lists(64)},
        {"lists": lists(128)},
    ]  # fmt: skip
    assert len({form(**wish) for wish in wishes}) == len(wishes)


def test_all_are_forgotten_where_there_would_be_too_many() -> None:
    kept = KeptCalls(most=2)
    for number in range(3):
        kept.keep((number,), torch.zeros)
    assert list(kept) == [(2,)]


def test_a_tensor_that_begins_elsewhere_or_asks_for_a_gradient_is_looked_at_once_more() -> None:
    flat = torch.zeros(4 * 64 + 1, dtype=torch.bfloat16)
    well, odd = flat[:-1].view(1, 4, 1, 64), flat[1:].view(1, 4, 1, 64)
    assert serve_again(well, well, well, None)
    assert serve_again(well, well, well, well)
    for given in ((odd, well, well, None), (well, odd, well, None), (well, well, odd, None), (well, well, well, odd)):
        assert not serve_again(*given)
    trained = well.clone().requires_grad_()
    assert not serve_again(well, trained, well, None)
    with torch.no_grad():
        assert serve_again(well, trained, well, None)
