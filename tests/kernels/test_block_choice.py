"""Choosing blocks: the smallest set that holds a share of the estimate, the fixed ones first, nothing unseen."""

from __future__ import annotations

import pytest
import torch

from inference_pio.kernels.block_choice import DENSE, Ranked, fixed_blocks, seen_blocks


def _case(queries=300, keys=500, query_block=128, key_block=64, starts=None, seed=0):
    sizes = (queries, keys, query_block, key_block)
    seen, fixed = seen_blocks(*sizes, starts=starts), fixed_blocks(*sizes, starts=starts)
    shape = (2, 3, -(-queries // query_block), -(-keys // key_block))
    chance = torch.Generator().manual_seed(seed)
    estimate = torch.rand(shape, generator=chance).pow(4).masked_fill(~seen, 0.0)
    return estimate / estimate.sum(-1, keepdim=True), fixed, seen


def _naive(estimate, fixed, seen, share):
    """Row by row: the fixed blocks, then the largest ones until the share is reached."""
    kept = torch.zeros_like(estimate, dtype=torch.bool)
    fixed, seen = fixed.expand_as(estimate), seen.expand_as(estimate)
    for place in torch.cartesian_prod(*map(torch.arange, estimate.shape[:3])).tolist():
        row, mine, visible = estimate[tuple(place)], fixed[tuple(place)], seen[tuple(place)]
        kept[tuple(place)] = mine & visible
        held = float(row[mine & visible].sum())
        for block in row.masked_fill(mine | ~visible, -1.0).argsort(descending=True).tolist():
            if held >= share or mine[block] or not visible[block]:
                break
            kept[(*place, block)] = True
            held += float(row[block])
    return kept


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("sizes", [(300, 500), (128, 128), (500, 500), (1, 200), (129, 1000)])
def test_the_kept_blocks_are_the_smallest_set_that_holds_the_share(share, sizes) -> None:
    estimate, fixed, seen = _case(*sizes)
    ranked = Ranked.of(estimate, fixed, seen)
    got = ranked.kept(torch.full(estimate.shape[:-1], share))
    assert torch.equal(got, _naive(estimate, fixed, seen, share))


def test_dense_keeps_all_that_is_seen_and_nothing_else() -> None:
    starts = torch.tensor([0, 200])
    estimate, fixed, seen = _case(starts=starts)
    got = Ranked.of(estimate, fixed, seen).kept(torch.full(estimate.shape[:-1], DENSE))
    assert torch.equal(got, seen.expand_as(got))


def test_each_head_has_its_own_share() -> None:
    estimate, fixed, seen = _case()
    ranked = Ranked.of(estimate, fixed, seen)
    shares = torch.tensor([0.2, 0.8, DENSE])[None, :, None].expand(estimate.shape[:-1])
    got = ranked.kept(shares)
    for head, share in enumerate((0.2, 0.8)):
        alone = Ranked.of(estimate[:, head : head + 1], fixed, seen)
        assert torch.equal(got[:, head : head + 1], alone.kept(torch.full((2, 1, estimate.shape[2]), share)))
    assert torch.equal(got[:, 2], seen.expand_as(got)[:, 2])


def test_coverage_is_the_mass_on_what_is_kept() -> None:
    estimate, fixed, seen = _case()
    mass = torch.rand_like(estimate).masked_fill(~seen, 0.0)
    mass = mass / mass.sum(-1, keepdim=True)
    grid = torch.tensor([0.3, 0.6, 0.95, DENSE])
    ranked = Ranked.of(estimate, fixed, seen)
    got = ranked.coverage(mass, grid)
    for place, share in enumerate(grid.tolist()):
        kept = ranked.kept(torch.full(estimate.shape[:-1], share))
        torch.testing.assert_close(got[..., place], (mass * kept).sum(-1))
    some = torch.tensor([2, 0])
    torch.testing.assert_close(ranked.rows(some).coverage(mass[:, :, some], grid), got[:, :, some])


def test_a_budget_caps_what_is_kept_and_leaves_the_fixed_ones() -> None:
    estimate, fixed, seen = _case()
    capped = Ranked.of(estimate, fixed, seen).at_most(4)
    for share in (0.5, DENSE):
        kept = capped.kept(torch.full(estimate.shape[:-1], share))
        assert int(kept.sum(-1).max()) == 4
        assert bool((kept | ~fixed | ~seen).all())


def test_the_fixed_blocks_are_the_first_and_the_last() -> None:
    assert fixed_blocks(128, 640, 128, 64)[0, 0, 0].int().tolist() == [1, 0, 0, 0, 0, 0, 0, 1, 1, 1]
    padded = fixed_blocks(64, 640, 64, 64, starts=torch.tensor([130]))
    assert padded[0, 0, 0].int().tolist() == [0, 0, 1, 0, 0, 0, 0, 0, 1, 1]


def test_the_last_queries_keep_everything() -> None:
    fixed = fixed_blocks(300, 300, 128, 64, ending=44)[0, 0]
    assert fixed.all(-1).tolist() == [False, False, True]
    assert fixed_blocks(300, 300, 128, 64, ending=45)[0, 0].all(-1).tolist() == [False, True, True]
    assert not bool(fixed_blocks(300, 300, 128, 64)[0, 0].all(-1)[0])
