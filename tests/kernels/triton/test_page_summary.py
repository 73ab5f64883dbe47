"""The page summary kernel against summaries from their definition: interpreted, compiled, and on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from inference_pio.compat import has_triton
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.page_summary import PageSummary, naive_page_summary
from tests.kernels.triton.compiling import MACHINES, Compiler

needs_triton = pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")


@dataclass(frozen=True)
class Case:
    """How many tokens come at a time, where the rows start, and how wide the heads are."""

    steps: tuple[int, ...]
    starts: tuple[int, ...] | None = None
    batch: int = 2
    heads: int = 3
    width: int = 24
    dtype: torch.dtype = torch.bfloat16


def check(case: Case, device: str = "cpu") -> None:
    from inference_pio.kernels.triton.page_summary import update_page_summary

    generator = torch.Generator().manual_seed(0)
    shape = (case.batch, 320, case.heads, case.width)
    keys = torch.full(shape, float("nan"), dtype=case.dtype, device=device)  # what was never written must not be read
    summary = PageSummary.zeros(keys)
    length = torch.zeros(1, dtype=torch.int32, device=device)
    starts = None if case.starts is None else torch.tensor(case.starts, dtype=torch.int32, device=device)
    end = 0
    for step in case.steps:
        drawn = torch.randn(case.batch, step, *shape[2:], generator=generator)
        keys[:, end : end + step] = drawn.to(device, case.dtype)
        end += step
        length.fill_(end)
        update_page_summary(summary, keys, length, step, starts)
        wanted = naive_page_summary(keys, end, starts)
        assert torch.equal(summary.minimum.float(), wanted.minimum)
        assert torch.equal(summary.maximum.float(), wanted.maximum)
        torch.testing.assert_close(summary.mean, wanted.mean, rtol=1e-5, atol=1e-6)


CASES = [
    Case((1, 1, 62, 1, 1, 63)),
    Case((63, 66, 2, 0, 129)),
    Case((130, 1, 1), starts=(70, 3)),
    Case((40, 1, 1, 90, 1), starts=(41, 128)),
    Case((65, 64), heads=1, width=576),
    Case((70, 1), batch=1, width=128, dtype=torch.float16),
    Case((70, 1), width=5, dtype=torch.float32),
]


@needs_triton
@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_is_exact_in_the_interpreter(case: Case, interpreted: Callable[..., None]) -> None:
    interpreted(check, case)


@needs_triton
def test_what_it_cannot_serve_is_refused() -> None:
    from inference_pio.kernels.triton.page_summary import update_page_summary

    keys = torch.zeros(1, 64, 1, 8)
    with pytest.raises(InvalidSetting, match="length and starts are int32"):
        update_page_summary(PageSummary.zeros(keys), keys, torch.ones(1), 1)


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("starts", [None, (1,)], ids=str)
@pytest.mark.parametrize(("heads", "width"), [(8, 128), (1, 576)])
def test_it_compiles_to_wide_loads_without_spilling(
    capability: int, starts: tuple[int, ...] | None, heads: int, width: int, compiler: Compiler
) -> None:
    from inference_pio.kernels.triton.page_summary import page_summary_kernel, update_page_summary

    compiler.for_machine(capability, page_summary_kernel)
    keys = torch.zeros(1, 128, heads, width, dtype=torch.bfloat16)
    padding = None if starts is None else torch.tensor(starts, dtype=torch.int32)
    update_page_summary(PageSummary.zeros(keys), keys, torch.tensor([70], dtype=torch.int32), 1, padding)
    (code,) = compiler.found
    code.assert_it_fits(MACHINES[capability])
    assert code.counts["LDG 128"], code
    assert not code.counts["LDG U16"], code


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gpu_it_is_exact_up_to_rounding(case: Case) -> None:
    check(case, "cuda")


@pytest.mark.gpu
def test_gpu_one_recorded_graph_serves_every_length() -> None:
    from inference_pio.kernels.triton.page_summary import update_page_summary

    keys = torch.randn(1, 256, 8, 128, device="cuda", dtype=torch.bfloat16)
    summary, length = PageSummary.zeros(keys), torch.ones(1, dtype=torch.int32, device="cuda")
    update_page_summary(summary, keys, length, 1)  # compiles, which no graph may do
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        update_page_summary(summary, keys, length, 1)
        length.add_(1)
    length.fill_(1)
    for _ in range(130):
        graph.replay()
    wanted = naive_page_summary(keys, 130)
    assert torch.equal(summary.maximum.float(), wanted.maximum)
    torch.testing.assert_close(summary.mean, wanted.mean, rtol=1e-5, atol=1e-6)
