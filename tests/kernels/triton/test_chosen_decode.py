"""The kernel that chooses pages and decodes over them, against both by themselves: interpreted, compiled, on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from inference_pio.compat import has_triton
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.decode_attention import naive_decode_attention
from inference_pio.kernels.page_summary import PageSummary
from inference_pio.kernels.triton.launch import PARTS
from tests.kernels.triton.compiling import MACHINES, Compiler
from tests.kernels.triton.test_page_choice import Case, chosen, made

needs_triton = pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")


def check(case: Case, device: str = "cpu", changes: dict[str, Any] | None = None) -> None:
    from inference_pio.kernels.triton.chosen_decode import ChosenScratch, chosen_decode
    from inference_pio.kernels.triton.launch import HOPPER, choose_chosen_launch

    query, keys, summary, true, lengths, starts, shares = made(case, device)
    values = torch.randn(keys.shape, generator=torch.Generator().manual_seed(1)).to(keys)
    batch, pages = len(case.lengths), summary.mean.shape[2]
    assert case.budget is not None
    launch = choose_chosen_launch(HOPPER, batch, case.heads, case.key_heads, case.width, pages, case.budget)
    assert launch is not None
    launch = replace(launch, **(changes or {}))
    scratch = ChosenScratch.of(batch, case.heads, case.key_heads, case.width, pages, launch, keys.device)
    options = {"scorer": case.scorer, "budget": case.budget, "sinks": case.sinks, "local": case.local}
    options |= {"written": case.written, "scratch": scratch, "launch": launch}
    for _ in range(2):  # nothing of one call is left to the next
        out = chosen_decode(query, keys, values, summary, lengths, shares, starts=starts, **options)
        for each in (scratch.scores, scratch.partial):
            assert bool((each == -1).all())
    assert torch.equal(summary.minimum, true.minimum)
    assert torch.equal(summary.maximum, true.maximum)
    torch.testing.assert_close(summary.mean, true.mean, rtol=1e-5, atol=1e-6)
    kept = torch.zeros(batch, case.key_heads, pages, dtype=torch.bool, device=keys.device)
    for row, length in enumerate(case.lengths):
        found = chosen(case, query[row : row + 1], summary, row, length, shares)
        kept[row, :, : found.shape[-1]] = found
    assert scratch.counts.tolist() == kept.sum(-1).tolist()
    expected = naive_decode_attention(query.float(), keys.float(), values.float(), lengths, starts, pages=kept)
    torch.testing.assert_close(out.float(), expected, rtol=2e-2, atol=1e-2)


CASES = [
    Case((3000,), budget=8),
    Case((3000, 500), budget=8, share=0.2, starts=(66, 0), scorer="both"),
    Case((3000,), budget=1, sinks=2, local=3, scorer="bounds"),
    Case((1,), budget=4, scorer="bounds", written=True),
    Case((64, 2049), heads=2, key_heads=2, budget=5, written=True),
    Case((2049, 700), heads=8, key_heads=1, budget=12, scorer="bounds", written=True),
    Case((2999, 130), heads=6, key_heads=2, starts=(700, 129), budget=9, scorer="both", written=True),
    Case((3000,), width=128, budget=16, share=2.0, scorer="bounds", sinks=0, local=0),
    Case((20000,), heads=2, key_heads=1, capacity=21000, budget=64, share=2.0, scorer="bounds"),
]


@needs_triton
@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_decodes_over_the_pages_that_sorting_chooses(case: Case, interpreted: Callable[..., None]) -> None:
    interpreted(check, case, "cpu", {"splits": 5, "columns": case.width // 4, "cuts": 4})


@needs_triton
def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from inference_pio.kernels.triton.chosen_decode import chosen_decode

    monkeypatch.setattr("inference_pio.kernels.triton.support._device", lambda device: None)
    query, one = torch.zeros(1, 2, 64, dtype=torch.bfloat16), torch.ones(1, dtype=torch.int32)
    keys = torch.zeros(1, 128 * 64, 1, 64, dtype=torch.bfloat16)
    summary = PageSummary.zeros(keys)
    with pytest.raises(InvalidSetting, match="one of mean, bounds, both"):
        chosen_decode(query, keys, keys, summary, one, torch.ones(1), budget=8, scorer="sum")
    with pytest.raises(InvalidSetting, match="does not choose 5000 of 128 pages for 2 heads"):
        chosen_decode(query, keys, keys, summary, one, torch.ones(1), budget=5000)


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("pages", "scorer", "width"), [(512, "bounds", 128), (2048, "both", 128), (128, "mean", 64)])
def test_it_compiles_to_copies_ahead_without_spilling(
    capability: int, pages: int, scorer: str, width: int, compiler: Compiler
) -> None:
    from inference_pio.kernels.triton import chosen_decode
    from inference_pio.kernels.triton.launch import choose_chosen_launch

    compiler.for_machine(capability, chosen_decode.chosen_decode_kernel)
    query, places = torch.zeros(1, 32, width, dtype=torch.bfloat16), torch.ones(1, dtype=torch.int32)
    keys = torch.empty(1, pages * 64, 8, width, dtype=torch.bfloat16)
    summary = PageSummary.zeros(keys)
    launch = choose_chosen_launch(MACHINES[capability], 1, 32, 8, width, pages, 64)
    chosen_decode.chosen_decode(
        query, keys, keys, summary, places, torch.ones(8), scorer=scorer, budget=64, written=True, launch=launch,
    )  # fmt: skip
    (code,) = compiler.found
    code.assert_it_fits(MACHINES[capability])
    assert code.counts["LDGSTS 128"] >= 16, code


@pytest.mark.gpu
@pytest.mark.parametrize("scorer", ["mean", "bounds", "both"])
@pytest.mark.parametrize("cooperative", [True, False])
def test_gpu_it_decodes_over_the_pages_that_sorting_chooses(scorer: str, cooperative: bool) -> None:
    case = Case((33000,), heads=32, key_heads=8, capacity=33024, width=128, budget=64, share=2.0, scorer=scorer)
    changes = {"cooperative": cooperative}
    check(case, "cuda", changes)
    check(replace(case, written=True, lengths=(700,)), "cuda", changes)
    check(replace(case, heads=8, key_heads=2, width=64, lengths=(9000,)), "cuda", changes)
    check(
        replace(case, heads=8, key_heads=2, lengths=(9000, 800), share=0.5),
        "cuda",
        {"launches": tuple((part,) for part in PARTS)},
    )
