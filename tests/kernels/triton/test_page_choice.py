"""The kernel that chooses pages against estimate and sorting: interpreted on awkward lengths, compiled, on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from inference_pio.compat import has_triton
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.block_choice import DENSE
from inference_pio.kernels.page_choice import naive_choose_pages
from inference_pio.kernels.page_list import PageList
from inference_pio.kernels.page_summary import PageSummary, naive_page_summary
from tests.kernels.triton.compiling import MACHINES, Compiler

needs_triton = pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")


@dataclass(frozen=True)
class Case:
    lengths: tuple[int, ...]
    heads: int = 4
    key_heads: int = 2
    width: int = 64
    capacity: int = 3000
    starts: tuple[int, ...] | None = None
    scorer: str = "mean"
    budget: int | None = None
    share: float = 0.9
    sinks: int = 1
    local: int = 2
    written: bool = False
    """Whether the summary of the last tokens' pages is left to the kernel."""
    ahead: int = 0


def made(case: Case, device: str):  # type: ignore[no-untyped-def]
    """Query, keys, their summary, one that stays as it is, lengths, starts and shares."""
    batch, pages = len(case.lengths), -(-case.capacity // 64)
    chance = torch.Generator().manual_seed(case.capacity)
    keys = torch.randn(batch, pages, 1, case.key_heads, case.width, generator=chance).expand(-1, -1, 64, -1, -1)
    keys = (keys + torch.randn(batch, pages, 64, case.key_heads, case.width, generator=chance)).flatten(1, 2)
    keys = keys.bfloat16()
    query = torch.randn(batch, case.heads, case.width, generator=chance).to(device).bfloat16()
    begin = [0] * batch if case.starts is None else case.starts
    rows = [
        naive_page_summary(keys[row : row + 1], length, torch.tensor([begin[row]]))
        for row, length in enumerate(case.lengths)
    ]
    found = [torch.cat([getattr(one, name) for one in rows]).to(device) for name in ("minimum", "maximum", "mean")]
    summary = PageSummary(found[0].bfloat16(), found[1].bfloat16(), found[2])
    true = PageSummary(*(each.clone() for each in (summary.minimum, summary.maximum, summary.mean)))
    if case.written:
        for row, length in enumerate(case.lengths):
            for each in (summary.minimum, summary.maximum, summary.mean):
                each[row, :, max(length - 1 - case.ahead, 0) // 64 : (length - 1) // 64 + 1] = float("nan")
    lengths = torch.tensor(case.lengths, dtype=torch.int32, device=device)
    starts = None if case.starts is None else torch.tensor(case.starts, dtype=torch.int32, device=device)
    shares = torch.full((case.key_heads,), case.share, device=device)
    shares[-1] = DENSE
    return query, keys.to(device), summary, true, lengths, starts, shares


def check(case: Case, device: str = "cpu") -> None:
    from inference_pio.kernels.triton.page_choice import PageScratch, choose_pages

    query, keys, summary, true, lengths, starts, shares = made(case, device)
    batch, pages = len(case.lengths), summary.mean.shape[2]
    scratch = PageScratch.of(batch, case.heads, pages, query.device)
    scratch.scores.fill_(float("nan"))
    width = pages if case.budget is None else max(case.budget, case.sinks + case.local + (case.ahead > 0))
    lists = PageList.empty(batch, case.key_heads, width, query.device)
    options = {"scorer": case.scorer, "budget": case.budget, "sinks": case.sinks, "local": case.local}
    options |= {"written": keys if case.written else None, "ahead": case.ahead}
    for _ in range(2):  # nothing of one call is left to the next
        lists.counts.fill_(-1)
        lists.indices.fill_(-1)
        choose_pages(query, summary, lengths, shares, starts=starts, lists=lists, scratch=scratch, **options)
    assert torch.equal(summary.minimum, true.minimum)
    assert torch.equal(summary.maximum, true.maximum)
    torch.testing.assert_close(summary.mean, true.mean, rtol=1e-5, atol=1e-6)
    for row, length in enumerate(case.lengths):
        expected = chosen(case, query[row : row + 1], summary, row, length, shares)
        for head in range(case.key_heads):
            count = int(lists.counts[row, head])
            got = lists.indices[row, head, :count].tolist()
            assert sorted(got) == expected[head]
            assert bool((lists.indices[row, head, count:] == -1).all())


def chosen(case: Case, query: torch.Tensor, summary: PageSummary, row: int, length: int, shares) -> list[list[int]]:  # type: ignore[no-untyped-def]
    """The same by torch, for each key head."""
    mine = PageSummary(*(one[row : row + 1] for one in (summary.minimum, summary.maximum, summary.mean)))
    starts = None if case.starts is None else torch.tensor([case.starts[row]], device=query.device)
    options = {"scorer": case.scorer, "budget": case.budget, "sinks": case.sinks, "local": case.local}
    found = naive_choose_pages(query, mine, length, shares, starts=starts, ahead=case.ahead, **options)
    return [head.nonzero().flatten().tolist() for head in found.kept(mine.mean.shape[2])[0]]


CASES = [
    Case((3000,)),
    Case((1,)),
    Case((64,), heads=2, key_heads=2),
    Case((2049, 700), heads=8, key_heads=1),
    Case((2999, 130), scorer="bounds"),
    Case((2500, 3000), scorer="both", heads=20, key_heads=2),
    Case((3000, 1000), starts=(700, 999)),
    Case((3000,), budget=8),
    Case((3000, 500), budget=8, share=0.2, starts=(66, 0), scorer="both"),
    Case((3000,), budget=1, sinks=2, local=3),
    Case((3000,), share=0.999, width=128, sinks=0, local=0),
    Case((200,), width=256),
    Case((3000, 200), budget=4, share=DENSE),
    Case((3000, 2000), budget=6, share=1.0, scorer="bounds", width=128),
    Case((131200,), heads=2, key_heads=1, capacity=131200, budget=64, share=0.5),
    Case((2945, 65), sinks=0, local=0, share=0.97),
]


@needs_triton
@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_chooses_as_sorting_does_in_the_interpreter(case: Case, interpreted: Callable[..., None]) -> None:
    interpreted(check, case)


@needs_triton
@pytest.mark.parametrize("scorer", ["mean", "bounds", "both"])
@pytest.mark.parametrize("case", [Case((3000,), budget=8), Case((2999, 129, 64), starts=(700, 128, 60))], ids=str)
def test_it_sums_up_the_page_that_was_written_to(case: Case, scorer: str, interpreted: Callable[..., None]) -> None:
    interpreted(check, Case(**{**case.__dict__, "scorer": scorer, "written": True}))


@needs_triton
@pytest.mark.parametrize(
    "case",
    [
        Case(
            (3000, 128, 62), ahead=3, scorer="both"
        ),  # a page that is written to yet, one that is full, one that fills
        Case((2944, 129), ahead=3, budget=8, scorer="bounds"),
        Case((2944, 66), ahead=7, budget=1, starts=(100, 60)),
        Case((3006,), ahead=63, capacity=3008, share=DENSE),  # no page follows the last one
        Case((40001,), ahead=3, capacity=40064, heads=2, key_heads=1, budget=64),  # more than are ranked
        Case((39999,), ahead=3, capacity=40064, heads=2, key_heads=1, share=0.6),
    ],
    ids=str,
)
def test_a_list_serves_the_tokens_to_come(case: Case, interpreted: Callable[..., None]) -> None:
    interpreted(check, Case(**{**case.__dict__, "written": True}))


@needs_triton
def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from inference_pio.kernels.triton import support
    from inference_pio.kernels.triton.page_choice import choose_pages

    monkeypatch.setattr(support, "_device", lambda device: None)
    query, one = torch.zeros(1, 2, 64, dtype=torch.bfloat16), torch.ones(1, dtype=torch.int32)
    summary = PageSummary.zeros(torch.empty(1, 4097 * 64, 1, 64, dtype=torch.bfloat16, device="meta"))
    with pytest.raises(InvalidSetting, match="on different devices"):
        choose_pages(query, summary, one, torch.ones(1))
    small = PageSummary.zeros(torch.zeros(1, 128, 1, 64, dtype=torch.bfloat16))
    with pytest.raises(InvalidSetting, match="by one of mean, bounds, both"):
        choose_pages(query, small, one, torch.ones(1), scorer="sum")
    turned = PageSummary(*(each.mT.contiguous().mT for each in (small.minimum, small.maximum, small.mean)))
    with pytest.raises(InvalidSetting, match="do not lie side by side"):
        choose_pages(query, turned, one, torch.ones(1))


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("pages", [512, 1024, 4096, pytest.param(2048, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("scorer", "width"), [("mean", 128), ("both", 128), ("both", 256)])
def test_it_compiles_to_wide_loads_without_spilling(
    capability: int, pages: int, scorer: str, width: int, compiler: Compiler
) -> None:
    from inference_pio.kernels.triton import page_choice

    kernels = page_choice.page_scores_kernel, page_choice.page_list_kernel, page_choice.page_rank_kernel
    compiler.for_machine(capability, *kernels)
    compiler.patch.setattr(page_choice, "may_overlap", lambda device: capability >= 90)
    query, places = torch.zeros(1, 8, width, dtype=torch.bfloat16), torch.ones(1, dtype=torch.int32)
    keys = torch.zeros(1, pages * 64, 1, width, dtype=torch.bfloat16)
    page_choice.choose_pages(
        query, PageSummary.zeros(keys), places, torch.ones(1), starts=places, scorer=scorer, budget=64, written=keys,
        dependent=capability >= 90,
    )  # fmt: skip
    scores, chosen = compiler.found
    for code in (scores, chosen):
        code.assert_it_fits(MACHINES[capability])
        waits = [each for each in code.order if each == "ACQBULK" or each.startswith("LDG")]
        assert (waits[0] == "ACQBULK") is (capability >= 90), code
    assert scores.counts["LDG 128"] >= 2, scores
    assert scores.counts["LDG U16"] <= 1, scores  # one query, as wide as the program
    assert ("PREEXIT" in scores.order) is (capability >= 90), scores


@pytest.mark.gpu
@pytest.mark.parametrize("scorer", ["mean", "bounds", "both"])
@pytest.mark.parametrize("width", [64, 128, 256])
def test_gpu_it_chooses_as_sorting_does(scorer: str, width: int) -> None:
    for case in (Case((33000, 700), heads=32, key_heads=8, capacity=33024), Case((9000,), budget=64, capacity=66000)):
        check(Case(**{**case.__dict__, "scorer": scorer, "width": width}), "cuda")
        check(Case(**{**case.__dict__, "scorer": scorer, "width": width, "written": True}), "cuda")
        check(Case(**{**case.__dict__, "scorer": scorer, "width": width, "written": True, "ahead": 3}), "cuda")
