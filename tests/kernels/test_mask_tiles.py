"""Tiles of masks: each kind is what its numbers say one by one, and rows are moved only where they cannot be as is."""

from __future__ import annotations

import pytest
import torch

from inference_pio.kernels.mask_tiles import (
    ALIGNED,
    HIDDEN,
    MIXED,
    WHOLE,
    MaskTiles,
    aligned,
    least_of,
    lists_of,
    naive_tile_kinds,
    narrowed,
)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.bfloat16, torch.float16])
def test_every_tile_is_of_the_kind_that_its_numbers_say(dtype: torch.dtype) -> None:
    seen = torch.rand(2, 3, 11, 21, generator=torch.Generator().manual_seed(0)) > 0.5
    seen[:, :, :4, :8], seen[:, :, 4:8, 8:16] = True, False
    seen[0, 1, 8:, 16:] = True  # a tile of 3 queries that reaches over the last key
    mask = seen if dtype == torch.bool else torch.zeros(seen.shape, dtype=dtype)
    if dtype != torch.bool:
        mask = mask.masked_fill(~seen, torch.finfo(dtype).min)
        mask[1, 2, 0, 0] = 0.5
    kinds = naive_tile_kinds(mask, 4, 8)
    for row, head, queries, keys in torch.cartesian_prod(*map(torch.arange, kinds.shape)).tolist():
        tile = mask[row, head, queries * 4 : queries * 4 + 4, keys * 8 : keys * 8 + 8]
        plain = tile == 0 if dtype != torch.bool else tile
        some = bool((tile if dtype == torch.bool else tile > -10000).any())
        kind = WHOLE if bool(plain.all()) and tile.shape[1] == 8 else MIXED if some else HIDDEN
        assert int(kinds[row, head, queries, keys]) == kind, (row, head, queries, keys)
    assert {int(kind) for kind in kinds.unique()} == {WHOLE, MIXED, HIDDEN}


def test_the_least_number_of_every_dtype_hides_in_every_other_that_it_is_told_in() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.finfo(torch.bfloat16).min < least_of(dtype)
        assert float("-inf") < least_of(dtype)
    assert torch.finfo(torch.float16).min < least_of(torch.float16)
    assert least_of(torch.float32) < -1e9  # a number that some write to hide, and that rows without a key average over


def test_lists_have_whole_tiles_first_and_hidden_ones_behind_the_count() -> None:
    kinds = torch.tensor([[HIDDEN, MIXED, WHOLE, MIXED, WHOLE], [HIDDEN] * 5], dtype=torch.uint8)[None, None]
    counts, indices = lists_of(kinds)
    assert counts.tolist() == [[[[2, 4], [0, 0]]]]
    assert indices[0, 0, 0, :4].tolist() == [2, 4, 1, 3]
    assert counts.dtype == indices.dtype == torch.int32


def test_what_is_the_same_for_rows_and_heads_is_held_once() -> None:
    shape = (2, 3, 5, 16)
    assert narrowed(torch.ones(5, 16), shape).shape == (1, 1, 5, 16)
    assert narrowed(torch.ones(2, 1, 5, 16).expand(shape), shape).shape == (2, 1, 5, 16)
    assert narrowed(torch.ones(shape), shape).shape == shape
    mask = narrowed(torch.ones(2, 3, 1, 16), shape)
    tiles = MaskTiles(mask, torch.zeros(2, 3, 4, 2, dtype=torch.int32), torch.zeros(2, 3, 4, 1, dtype=torch.int32))
    assert tiles.steps == (48, 16, 0, 12, 4)
    once = MaskTiles(mask[:1, :1], tiles.counts[:1, :1], tiles.indices[:1, :1])
    assert once.steps == (0, 0, 0, 0, 0)


def test_rows_are_moved_only_where_they_cannot_be_read_as_they_lie() -> None:
    wide = torch.rand(2, 2, 5, 64)
    for fits in (wide, wide[..., 16:48], wide[:1, :1, :1].expand(1, 1, 5, 64)):
        assert aligned(fits) is fits
    for odd in (wide[..., 1:33], wide[..., :33], torch.rand(1, 1, 5, 17), torch.rand(1, 1, 1, 17).expand(1, 1, 5, 17)):
        moved = aligned(odd)
        assert torch.equal(moved, odd)
        assert moved.stride(2) % ALIGNED == 0
        assert moved.untyped_storage().nbytes() <= (2 * 2 if len(odd) == 2 else 1) * 5 * 48 * 4
    assert aligned(torch.rand(1, 1, 1, 17).expand(1, 1, 5, 17)).stride(2) == 0
