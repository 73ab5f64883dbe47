"""The decode kernels against attention as it is defined: interpreted on awkward lengths, compiled, and on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from inference_pio.compat import has_triton
from inference_pio.kernels.decode_attention import gather_pages, naive_decode_attention
from inference_pio.kernels.triton.launch import PAGE, DecodeLaunch, choose_decode_launch
from tests.kernels.triton.compiling import MACHINES, Compiler

needs_triton = pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")


@dataclass(frozen=True)
class Case:
    """Sizes, what is seen of each row (one length may serve all), how the cache lies, and which pages are read."""

    lengths: tuple[int, ...]
    heads: int = 4
    key_heads: int = 1
    width: int = 64
    capacity: int = 300
    starts: tuple[int, ...] | None = None
    batch: int = 1
    paged: bool = False
    listed: bool = False
    splits: int | None = 3
    dtype: torch.dtype = torch.bfloat16


def check(case: Case, device: str = "cpu") -> None:
    from inference_pio.kernels.page_list import PageList
    from inference_pio.kernels.triton.decode import DecodeScratch, decode_attention

    generator = torch.Generator().manual_seed(case.capacity)
    query = torch.randn(case.batch, case.heads, case.width, generator=generator).to(device, case.dtype)
    table = None
    shape = (case.batch, case.capacity)
    if case.paged:
        pages = -(-case.capacity // PAGE)
        table = torch.randperm(case.batch * pages, generator=generator).view(case.batch, pages).int().to(device)
        shape = (case.batch * pages, PAGE)
    cache = [
        torch.randn(*shape, case.key_heads, case.width, generator=generator).to(device, case.dtype) for _ in range(2)
    ]
    whole = [gather_pages(tensor, table) if table is not None else tensor.clone() for tensor in cache]
    lengths = torch.tensor(case.lengths, dtype=torch.int32, device=device)
    if not case.paged:  # what lies behind the length was never written
        for tensor in cache:
            tensor[torch.arange(case.capacity, device=device).expand(shape) >= lengths.view(-1, 1)] = float("nan")
    starts = None if case.starts is None else torch.tensor(case.starts, dtype=torch.int32, device=device)
    if not case.paged and starts is not None:
        for tensor in cache:
            tensor[torch.arange(case.capacity, device=device).expand(shape) < starts.view(-1, 1)] = float("nan")
    kept, lists = None, None
    if case.listed:
        pages = -(-whole[0].shape[1] // PAGE)
        kept = (torch.rand(case.batch, case.key_heads, pages, generator=generator) < 0.5).to(device)
        indices = kept.logical_not().to(torch.uint8).sort(dim=-1, stable=True).indices.int().contiguous()
        lists = PageList(kept.sum(-1).int(), indices)
    wanted = naive_decode_attention(query, whole[0], whole[1], lengths, starts, pages=kept)
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if device == "cpu" else {"rtol": 1e-2, "atol": 1e-2}
    chosen = choose_decode_launch(MACHINES[90], case.batch, case.key_heads, case.width, whole[0].shape[1])
    launch = chosen if case.splits is None else DecodeLaunch(case.splits)
    for counted in (0, case.key_heads):  # joined by a kernel of its own, and by the last program
        scratch = DecodeScratch.of(case.batch, case.heads, case.width, launch, query.device, counted=counted)
        scratch.partial.fill_(float("nan"))
        scratch.weight.fill_(float("nan"))
        # The interpreter's rounding to bfloat16 is not a GPU's, so there none is asked for.
        out = torch.full_like(query, float("nan"), dtype=torch.float32 if device == "cpu" else case.dtype)
        given = {"table": table, "pages": lists, "out": out, "scratch": scratch, "launch": launch}
        decode_attention(query, cache[0], cache[1], lengths, starts, **given)  # type: ignore[arg-type]
        torch.testing.assert_close(out.float(), wanted, **tolerance)
        assert scratch.arrived is None or not scratch.arrived.any(), "the next launch would join too early"


CASES = [
    Case((300,)),
    Case((1,)),
    Case((64,), splits=1),
    Case((65,), splits=7),
    Case((0,)),
    Case((300, 77), batch=2, heads=8),
    Case((130, 300, 5), batch=3, key_heads=2, heads=16, starts=(0, 65, 4)),
    Case((200,), batch=2, starts=(199, 3)),
    Case((100, 90), batch=2, starts=(100, 0)),
    Case((257, 33), batch=2, key_heads=2, heads=8, paged=True),
    Case((300, 120), batch=2, key_heads=2, heads=6, listed=True),
    Case((300, 120), batch=2, key_heads=2, heads=8, listed=True, paged=True, starts=(66, 0)),
    Case((150,), heads=20, width=128, dtype=torch.float16),
    Case((150,), heads=2, key_heads=2, width=256, splits=2),
]


@needs_triton
@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_is_exact_in_the_interpreter(case: Case, interpreted: Callable[..., None]) -> None:
    interpreted(check, case)


KINDS = {
    "plain": {},
    "padded": {"starts": (1,)},
    "paged": {"paged": True},
    "listed": {"listed": True},
    "both": {"listed": True, "paged": True, "starts": (1,)},
}


def _compile(compiler: Compiler, capability: int, width: int, kind: str, group: int = 4, counted: bool = False) -> None:
    from inference_pio.kernels.page_list import PageList
    from inference_pio.kernels.triton.decode import DecodeScratch, decode_attention, decode_kernel, join_kernel

    compiler.for_machine(capability, decode_kernel, join_kernel)
    case = Case((37,), **KINDS[kind])  # type: ignore[arg-type]
    cache = torch.zeros(2, PAGE, 2, width, dtype=torch.bfloat16)
    lists = PageList(torch.ones(1, 2, dtype=torch.int32), torch.zeros(1, 2, 5, dtype=torch.int32))
    launch = choose_decode_launch(MACHINES[capability], 1, 2, width, 32768)
    query = torch.zeros(1, 2 * group, width, dtype=torch.bfloat16)
    decode_attention(
        query, *(cache if case.paged else cache[:1] for _ in range(2)),
        torch.tensor([37], dtype=torch.int32), torch.tensor([1], dtype=torch.int32) if case.starts else None,
        table=torch.zeros(1, 1, dtype=torch.int32) if case.paged else None, pages=lists if case.listed else None,
        launch=launch, scratch=DecodeScratch.of(1, 2 * group, width, launch, query.device, counted=2 * counted),
    )  # fmt: skip
    split, join = compiler.found[0], compiler.found[-1]
    assert len(compiler.found) == (1 if counted else 2)
    for code in compiler.found:
        code.assert_it_fits(MACHINES[capability])
        assert not code.counts["LDG U16"], code
    assert split.counts["LDGSTS 128"] >= 16, split
    assert kind in ("paged", "listed", "both") or not split.counts["LDGSTS"], split  # page numbers are 4 bytes each
    assert split.counts["HMMA"], split
    assert join.counts["LDG 128"], join


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("kind", ["plain", "both"])
def test_it_compiles_to_wide_loads_without_spilling(capability: int, kind: str, compiler: Compiler) -> None:
    _compile(compiler, capability, 128, kind)


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("group", [1, 4, 8, 16])
def test_so_does_the_last_program_that_joins(capability: int, group: int, compiler: Compiler) -> None:
    _compile(compiler, capability, 128, "plain", group, counted=True)


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [64, 128, 256])
def test_so_does_every_width(capability: int, kind: str, width: int, compiler: Compiler) -> None:
    _compile(compiler, capability, width, kind)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [64, 128, 256])
@pytest.mark.parametrize("lengths", [(1,), (4097,), (33000,)])
def test_gpu_it_is_exact_up_to_rounding(kind: str, width: int, lengths: tuple[int, ...]) -> None:
    case = {"heads": 8, "key_heads": 2, "width": width, "capacity": 33024, "splits": None, **KINDS[kind]}
    check(Case(lengths, **case), "cuda")  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.parametrize("key_heads", [4, 8])
@pytest.mark.parametrize("kind", ["plain", "both"])
@pytest.mark.parametrize("lengths", [(1,), (1024, 33000)], ids=str)
def test_gpu_real_sizes_are_exact_up_to_rounding(kind: str, key_heads: int, lengths: tuple[int, ...]) -> None:
    batch = len(lengths)
    case = {"heads": 32, "key_heads": key_heads, "width": 128, "capacity": 33024, "splits": None, "batch": batch}
    options = KINDS[kind] | ({"starts": (1, 700)[:batch]} if "starts" in KINDS[kind] else {})
    check(Case(lengths, **case, **options), "cuda")  # type: ignore[arg-type]


@pytest.mark.gpu
def test_gpu_one_recorded_graph_serves_every_length() -> None:
    from inference_pio.kernels.triton.decode import DecodeScratch, decode_attention

    device = torch.device("cuda")
    query = torch.randn(2, 32, 128, device=device, dtype=torch.bfloat16)
    key, value = torch.randn(2, 2, 4096, 8, 128, device=device, dtype=torch.bfloat16)
    lengths = torch.tensor([7, 4096], dtype=torch.int32, device=device)
    launch = DecodeLaunch(16)
    scratch, out = DecodeScratch.of(2, 32, 128, launch, device), torch.empty_like(query)
    given = {"out": out, "scratch": scratch, "launch": launch}
    decode_attention(query, key, value, lengths, **given)  # type: ignore[arg-type]  # compiles, which no graph may do
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        decode_attention(query, key, value, lengths, **given)  # type: ignore[arg-type]
    for length in (1, 64, 65, 1000, 4096):
        lengths.copy_(torch.tensor([length, 4097 - length]))
        out.fill_(float("nan"))
        graph.replay()
        wanted = naive_decode_attention(query, key, value, lengths)
        torch.testing.assert_close(out.float(), wanted, rtol=1e-2, atol=1e-2)
