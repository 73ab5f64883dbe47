"""The kernel that chooses blocks against the choice by sorting: interpreted on awkward sizes, compiled, on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from inference_pio.compat import has_triton
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.block_choice import DENSE, Ranked, fixed_blocks, seen_blocks
from inference_pio.kernels.block_estimate import SPAN, estimate_of_spans
from inference_pio.kernels.block_sparse import BlockList
from tests.kernels.triton.compiling import MACHINES, Compiler

needs_triton = pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")
MASS_TOLERANCE = 1e-4
"""Sums are taken in another order: a row may keep one block more or less where the share falls between two sums."""


@dataclass(frozen=True)
class Case:
    """`peaked`: the standard deviation of the scores; at 0 all estimates are equal."""

    queries: int = 300
    keys: int = 500
    query_block: int = 128
    key_block: int = 64
    batch: int = 1
    starts: tuple[int, ...] | None = None
    peaked: float = 3.0
    sinks: int = 1
    local: int = 2
    ending: int = 0

    def scores(self, heads: int, device: str) -> torch.Tensor:
        chance = torch.Generator().manual_seed(self.queries + self.keys)
        shape = (self.batch, heads, -(-self.queries // SPAN), -(-self.keys // SPAN))
        return (self.peaked * torch.randn(shape, generator=chance)).to(device)

    def ranked(self, scores: torch.Tensor) -> tuple[Ranked, torch.Tensor]:
        """The choice by sorting, and the estimate that it is made by."""
        sizes = (self.queries, self.keys, self.query_block, self.key_block)
        starts, device = self.places(scores.device), scores.device
        estimate = estimate_of_spans(
            scores, *sizes[:2], query_block=self.query_block, key_block=self.key_block, starts=starts
        )
        kept = {"sinks": self.sinks, "local": self.local, "ending": self.ending}
        fixed = fixed_blocks(*sizes, **kept, starts=starts, device=device)
        return Ranked.of(estimate, fixed, seen_blocks(*sizes, starts=starts, device=device)), estimate

    def options(self, device: torch.device) -> dict:  # type: ignore[type-arg]
        return {
            "query_block": self.query_block, "key_block": self.key_block, "sinks": self.sinks, "local": self.local,
            "ending": self.ending, "starts": self.places(device),
        }  # fmt: skip

    def places(self, device: torch.device) -> torch.Tensor | None:
        return None if self.starts is None else torch.tensor(self.starts, dtype=torch.int32, device=device)


SHARES = (0.3, 0.9, 0.995, DENSE)


def check(case: Case, device: str = "cpu") -> None:
    from inference_pio.kernels.triton.block_choice import choose_blocks

    shares = torch.tensor(SHARES, device=device)
    scores = case.scores(len(SHARES), device)
    lists = choose_blocks(scores, shares, case.queries, case.keys, **case.options(scores.device))
    ranked, estimate = case.ranked(scores)
    expected = ranked.kept(shares[None, :, None].expand(estimate.shape[:3]))
    got = kept_by(lists)
    assert torch.equal(got[:, -1], expected[:, -1])  # dense: all that is seen
    assert bool((got & ~ranked.visible).sum() == 0)
    if case.peaked:
        assert torch.equal(got, expected)
    assert int((got.sum(-1) - expected.sum(-1)).abs().max()) <= 1
    held, wanted = (estimate * got).sum(-1), (estimate * expected).sum(-1)
    if case.peaked:  # among equal ones, one more or less is a share of its own
        torch.testing.assert_close(held, wanted, rtol=0, atol=MASS_TOLERANCE)
    if case.starts is None:  # else some blocks of queries are padding, and see nothing
        assert bool((held >= shares[None, :, None].clamp(max=1.0) - MASS_TOLERANCE).all())


def kept_by(lists: BlockList) -> torch.Tensor:
    """What lists stand for; each must ascend, and nothing behind its count be read."""
    behind = torch.arange(lists.indices.shape[-1], device=lists.counts.device) >= lists.counts[..., None]
    numbers = lists.indices.masked_fill(behind, lists.indices.shape[-1]).long()
    assert bool(((numbers.diff(dim=-1) > 0) | behind[..., 1:]).all())
    kept = torch.zeros(*numbers.shape[:3], numbers.shape[3] + 1, dtype=torch.bool, device=numbers.device)
    return kept.scatter(-1, numbers, ~behind)[..., :-1]


def check_again(case: Case, device: str = "cpu") -> None:
    """Heads whose share has changed are chosen anew, the others are left alone."""
    from inference_pio.kernels.triton.block_choice import choose_blocks

    scores = case.scores(len(SHARES), device)
    before, options = torch.tensor(SHARES, device=device), case.options(scores.device)
    lists = choose_blocks(scores, before, case.queries, case.keys, **options)
    after = before.clone()
    after[1] = DENSE
    expected = choose_blocks(scores, after, case.queries, case.keys, **options)
    wanted, first_counts = kept_by(expected), lists.counts.clone()
    lists.counts[:, 0] = -7  # must not be written
    choose_blocks(scores, after, case.queries, case.keys, before=before, lists=lists, **options)
    assert bool((lists.counts[:, 0] == -7).all())
    lists.counts[:, 0] = first_counts[:, 0]
    assert torch.equal(kept_by(lists), wanted)
    assert not torch.equal(first_counts[:, 1], lists.counts[:, 1])


CASES = [
    Case(),
    Case(queries=1, keys=1),
    Case(queries=130, keys=130, query_block=64),
    Case(queries=500, keys=500, key_block=128),
    Case(queries=129, keys=2000, peaked=8.0),
    Case(queries=200, keys=1100, peaked=0.0),
    Case(queries=300, keys=300, batch=2, starts=(0, 170)),
    Case(queries=300, keys=700, ending=128),
    Case(queries=100, keys=700, batch=2, starts=(650, 64), sinks=2, local=1),
    Case(queries=70, keys=900, sinks=0, local=0, query_block=64, key_block=128),
]


@needs_triton
@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_chooses_as_sorting_does_in_the_interpreter(case: Case, interpreted: Callable[..., None]) -> None:
    interpreted(check, case)


@needs_triton
def test_only_heads_whose_share_changed_are_chosen_anew(interpreted: Callable[..., None]) -> None:
    interpreted(check_again, Case())


@needs_triton
def test_what_does_not_fit_is_refused() -> None:
    from inference_pio.kernels.triton.block_choice import choose_blocks

    with pytest.raises(InvalidSetting, match="up to 4096 blocks"):
        choose_blocks(torch.zeros(1, 1, 1, 4097), torch.ones(1), 64, 4097 * 64, query_block=64, key_block=64)
    with pytest.raises(InvalidSetting, match="whole spans of 64"):
        choose_blocks(torch.zeros(1, 1, 1, 2), torch.ones(1), 64, 128, query_block=64, key_block=32)


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("blocks", [512, 2048, 4096])
@pytest.mark.parametrize("key_block", [64, 128])
def test_it_compiles_without_spilling(capability: int, blocks: int, key_block: int, compiler: Compiler) -> None:
    from inference_pio.kernels.triton.block_choice import choice_kernel, choose_blocks

    compiler.for_machine(capability, choice_kernel)
    spans = blocks * key_block // SPAN
    starts = torch.zeros(1, dtype=torch.int32)
    choose_blocks(
        torch.zeros(1, 1, 2, spans), torch.ones(1), 128, spans * SPAN, query_block=128, key_block=key_block,
        starts=starts, before=torch.ones(1),
    )  # fmt: skip
    (code,) = compiler.found
    code.assert_it_fits(MACHINES[capability])
    assert code.counts["LDG 128" if key_block == 64 else "LDG 64"] >= 4, code
    assert code.counts["LDG"] <= 4, code


@pytest.mark.gpu
@pytest.mark.parametrize("peaked", [0.0, 4.0])
def test_gpu_it_chooses_as_sorting_does(peaked: float) -> None:
    """A share may fall between two sums on some of so many rows: the mass and the counts are held, not the sets."""
    from inference_pio.kernels.triton.block_choice import choose_blocks

    for case in (Case(8192, 8192, peaked=peaked), Case(700, 60000, batch=2, starts=(0, 5000), peaked=peaked)):
        scores, shares = case.scores(len(SHARES), "cuda"), torch.tensor(SHARES, device="cuda")
        got = kept_by(choose_blocks(scores, shares, case.queries, case.keys, **case.options(scores.device)))
        ranked, estimate = case.ranked(scores)
        expected = ranked.kept(shares[None, :, None].expand(estimate.shape[:3]))
        assert int((got.sum(-1) - expected.sum(-1)).abs().max()) <= 1
        more = 1.0 / 100 if peaked == 0 else MASS_TOLERANCE
        torch.testing.assert_close((estimate * got).sum(-1), (estimate * expected).sum(-1), rtol=0, atol=more)
    check_again(Case(), "cuda")
