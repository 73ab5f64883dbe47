"""The kernel that looks over a mask against its plain truth, and what is kept of it on the mask."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch

from inference_pio.kernels.mask_tiles import least_of, lists_of, naive_tile_kinds
from inference_pio.kernels.triton.flash_launch import FlashLaunch
from tests.kernels.triton.test_flash import needs_triton

DTYPES = (torch.bool, torch.float32, torch.bfloat16, torch.float16)
SIZES = [(1, 1, 1, 33), (2, 1, 65, 130), (1, 3, 70, 48), (1, 1, 40, 160)]


def drawn(size: tuple[int, ...], dtype: torch.dtype, device: str) -> torch.Tensor:
    seen = torch.rand(size, generator=torch.Generator().manual_seed(size[-1])) > 0.5
    seen[:, :, :32, :32], seen[..., 32:64] = True, False
    if dtype == torch.bool:
        return seen.to(device)
    mask = torch.zeros(size, dtype=dtype).masked_fill(~seen, least_of(dtype) * 1.5)
    mask[..., -1] = -5.0
    return mask.to(device)


def check_kinds(size: tuple[int, int, int, int], dtype: torch.dtype, device: str = "cpu") -> None:
    from inference_pio.kernels.triton.mask_tiles import tile_kinds, tiles_of

    mask = drawn(size, dtype, device)
    launch = FlashLaunch(32, 32, 4, 2)
    query, key = (
        torch.empty(size[0], 4, size[2], 64, device=device),
        torch.empty(size[0], 2, size[3], 64, device=device),
    )
    if size[1] == 3:
        query = query[:, :3]
    wanted = naive_tile_kinds(mask, 32, 32)
    tiles = tiles_of(mask, query, key, launch)
    assert torch.equal(tile_kinds(tiles.mask, 32, 32), wanted)
    counts, indices = lists_of(wanted)
    assert torch.equal(tiles.counts, counts)
    assert torch.equal(tiles.indices, indices)
    assert torch.equal(tiles.mask.bool() if dtype == torch.bool else tiles.mask, mask)
    assert (tiles.least is None) == (dtype == torch.bool)


@needs_triton
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_kinds_are_those_of_the_definition_in_the_interpreter(
    size: tuple[int, int, int, int], dtype: torch.dtype, interpreted: Callable[..., None]
) -> None:
    interpreted(check_kinds, size, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [*SIZES, (2, 1, 1000, 3001)], ids=str)
def test_gpu_kinds_are_those_of_the_definition(size: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    check_kinds(size, dtype, "cuda")


def check_what_is_kept() -> None:
    from inference_pio.kernels.triton.mask_tiles import tiles_of

    query, key = torch.empty(1, 2, 40, 64), torch.empty(1, 1, 48, 64)
    launch = FlashLaunch(32, 32, 4, 2)
    mask = torch.ones(1, 1, 40, 48, dtype=torch.bool)
    first = tiles_of(mask, query, key, launch)
    assert tiles_of(mask, query, key, launch).counts is first.counts
    assert tiles_of(mask, query, key, FlashLaunch(16, 16, 4, 2)).counts.shape == (1, 1, 3, 2)
    mask[..., :32] = False
    assert tiles_of(mask, query, key, launch).counts.tolist() == [[[[0, 1], [0, 1]]]]
    odd = torch.ones(1, 1, 40, 49, dtype=torch.bool)[..., 1:]
    assert tiles_of(odd, query, key, launch).mask is tiles_of(odd, query, key, launch).mask
    with torch.inference_mode():
        told = torch.ones(1, 1, 40, 48, dtype=torch.bool)
        tiles_of(told, query, key, launch)
        told[..., :32] = False
        assert tiles_of(told, query, key, launch).counts.tolist() == [[[[0, 1], [0, 1]]]]


def check_masks_go() -> None:
    """By counting alone: a mask that held itself would stay, with the memory of a GPU, until somebody collects."""
    from inference_pio.kernels.triton.mask_tiles import tiles_of

    query, key = torch.empty(1, 2, 40, 64), torch.empty(1, 1, 48, 64)
    gc.disable()
    for dtype, lead in ((torch.bool, 0), (torch.float32, 0), (torch.bool, 1)):
        mask = torch.ones(40, 48 + lead, dtype=dtype)
        mask = mask[:, lead:] if lead else mask  # of a part of another, the other is what would be held
        tiles_of(mask, query, key, FlashLaunch(32, 32, 4, 2))
        gone = weakref.ref(mask)
        del mask
        assert gone() is None
    gc.enable()


@needs_triton
def test_a_mask_that_nobody_needs_any_more_goes(interpreted: Callable[..., None]) -> None:
    interpreted(check_masks_go)
