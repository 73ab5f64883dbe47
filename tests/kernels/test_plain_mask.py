"""A mask is read as numbers only if it hides what comes later and padding on the left, and nothing else."""

from __future__ import annotations

import pytest
import torch

from inference_pio.kernels.plain_mask import Extent, extent_of, extent_without_mask


def _mask(starts: tuple[int, ...], queries: int, keys: int, end: int) -> torch.Tensor:
    position = torch.arange(end - queries, end)[:, None]
    column = torch.arange(keys)
    return torch.stack([(column <= position) & (column >= start) for start in starts])[:, None]


@pytest.mark.parametrize(("queries", "keys", "end"), [(9, 9, 9), (1, 9, 9), (1, 16, 9), (4, 12, 9), (1500, 1600, 1590)])
@pytest.mark.parametrize("starts", [(0,), (0, 0), (3, 0)])
@pytest.mark.parametrize("additive", [False, True])
def test_a_plain_mask_is_read(starts: tuple[int, ...], queries: int, keys: int, end: int, additive: bool) -> None:
    mask = _mask(starts, queries, keys, end)
    if additive:
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    assert extent_of(mask, len(starts)) == Extent(starts, end)


def test_one_mask_serves_all_rows_of_a_batch() -> None:
    assert extent_of(_mask((0,), 4, 4, 4), 3) == Extent((0, 0, 0), 4)
    assert extent_of(_mask((0, 1), 4, 4, 4), 3) is None


def test_the_rows_of_padding_itself_may_hold_anything() -> None:
    mask = _mask((2,), 5, 5, 5)
    mask[0, 0, :2] = True
    assert extent_of(mask, 1) == Extent((2,), 5)


@pytest.mark.parametrize("place", [(0, 0, 3, 1), (0, 0, 1, 3), (0, 0, 1499, 5)])
def test_one_other_entry_makes_a_mask_unknown(place: tuple[int, ...]) -> None:
    mask = _mask((0,), 1500, 1500, 1500)
    mask[place] = not mask[place]
    assert extent_of(mask, 1) is None


def test_masks_of_other_kinds_are_unknown() -> None:
    window = torch.ones(6, 6, dtype=torch.bool).tril() & torch.ones(6, 6, dtype=torch.bool).triu(-2)
    right_padded = _mask((0, 0), 6, 6, 6) & (torch.arange(6) < torch.tensor([6, 4])[:, None])[:, None, None]
    bias = torch.zeros(1, 1, 6, 6).masked_fill(~torch.ones(6, 6, dtype=torch.bool).tril(), float("-inf"))
    assert extent_of(bias, 1) == Extent((0,), 6)
    bias[0, 0, 5, 0] = -0.5
    blind = torch.zeros(1, 1, 6, 6, dtype=torch.bool)
    for mask in (window[None, None], right_padded, bias, blind, torch.ones(1, 6), torch.ones(1, 1, 6, 6).long()):
        assert extent_of(mask, mask.shape[0]) is None
    assert extent_of(_mask((0,), 4, 4, 4).expand(1, 2, 4, 4), 1) is None
    assert extent_of(torch.ones(1, 1, 5, 3, dtype=torch.bool), 1) is None


def test_without_a_mask_one_token_sees_all_and_several_stand_at_the_first_keys() -> None:
    assert extent_without_mask(2, 1, 7) == Extent((0, 0), 7)
    assert extent_without_mask(1, 5, 7) == Extent((0,), 5)


def test_rows_of_one_start_go_together() -> None:
    assert Extent((1, 1, 0, 1), 9).rows_by_start() == [(1, slice(0, 2)), (0, slice(2, 3)), (1, slice(3, 4))]
