"""The coverage of audited blocks by one kernel is that of the choice by sorting, share by share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from inference_pio.compat import has_triton
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.block_choice import DENSE
from inference_pio.kernels.block_estimate import SPAN
from tests.kernels.triton.compiling import MACHINES, Compiler
from tests.kernels.triton.test_block_choice import CASES, Case

needs_triton = pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")
ROWS = 8


def check(case: Case, device: str = "cpu") -> None:
    from inference_pio.kernels.triton.audited_coverage import audited_coverage

    scores, chance = case.scores(3, device), torch.Generator().manual_seed(1)
    ranked, estimate = case.ranked(scores)
    audited = torch.randperm(estimate.shape[2], generator=chance)[:2].to(device)
    audited = torch.cat((audited, audited[:1]))
    visible = ranked.visible.expand_as(estimate)[:, :, audited]
    shape = (case.batch, 3, estimate.shape[3], len(audited) * ROWS)
    weights = (4 * torch.randn(shape, generator=chance)).to(device).transpose(2, 3)
    weights = weights.masked_fill(~visible.repeat_interleave(ROWS, 2), float("-inf"))
    mass = torch.softmax(weights * 0.6931471805599453, -1).nan_to_num(0.0).unflatten(2, (-1, ROWS)).sum(3)
    mass = mass / mass.sum(-1, keepdim=True).clamp(min=1e-30)
    shares = torch.tensor([0.2, 0.5, 0.9, 0.99, 0.9999, DENSE], device=device)
    weights = weights.transpose(2, 3).contiguous().transpose(2, 3)
    got = audited_coverage(scores, weights, audited, shares, case.queries, case.keys, **case.options(scores.device))
    expected = ranked.rows(audited).coverage(mass, shares)
    if case.peaked == 0:  # which ones of equal ones are kept first is not told
        got, expected = got[..., -1:], expected[..., -1:]
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@needs_triton
@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_covers_as_sorting_does_in_the_interpreter(case: Case, interpreted: Callable[..., None]) -> None:
    interpreted(check, case)


@needs_triton
def test_rows_of_other_blocks_are_refused() -> None:
    from inference_pio.kernels.triton.audited_coverage import audited_coverage

    with pytest.raises(InvalidSetting, match="do not belong to 2 audited blocks"):
        audited_coverage(
            torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 9).transpose(2, 3), torch.arange(2), torch.ones(1), 128, 128,
            query_block=64, key_block=64,
        )  # fmt: skip


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("blocks", [512, 2048, 4096])
@pytest.mark.parametrize("key_block", [64, 128])
def test_it_compiles_without_spilling(capability: int, blocks: int, key_block: int, compiler: Compiler) -> None:
    from inference_pio.kernels.triton.audited_coverage import audited_coverage, coverage_kernel

    compiler.for_machine(capability, coverage_kernel)
    spans = blocks * key_block // SPAN
    audited_coverage(
        torch.zeros(1, 1, 2, spans), torch.zeros(1, 1, blocks, ROWS).transpose(2, 3), torch.arange(1), torch.ones(23),
        128, spans * SPAN, query_block=128, key_block=key_block, starts=torch.zeros(1, dtype=torch.int32),
    )  # fmt: skip
    (code,) = compiler.found
    code.assert_it_fits(MACHINES[capability])
    assert code.counts["LDG 128" if key_block == 64 else "LDG 64"] >= 2, code


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gpu_it_covers_as_sorting_does(case: Case) -> None:
    check(case, "cuda")
