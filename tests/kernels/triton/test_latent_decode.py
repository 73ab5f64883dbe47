"""The latent decode kernel against attention as it is defined: interpreted on awkward lengths, compiled, on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch

from inference_pio.compat import has_triton
from inference_pio.kernels.latent_attention import naive_latent_attention
from inference_pio.kernels.triton.launch import PAGE, LatentLaunch, choose_latent_launch
from tests.kernels.triton.compiling import MACHINES, Compiler

needs_triton = pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")
FEW = LatentLaunch(splits=3, rows=16, block=64, warps=4, stages=2)


@dataclass(frozen=True)
class Case:
    """Sizes, what is seen of each row (one length may serve all), how the cache lies, and which pages are read."""

    lengths: tuple[int, ...]
    heads: int = 4
    width: int = 64
    rope: int = 32
    capacity: int = 300
    starts: tuple[int, ...] | None = None
    batch: int = 1
    parted: bool = False
    paged: bool = False
    listed: bool = False
    launch: LatentLaunch | None = FEW
    dtype: torch.dtype = torch.bfloat16


def check(case: Case, device: str = "cpu") -> None:
    from inference_pio.kernels.page_list import PageList
    from inference_pio.kernels.triton.decode import DecodeScratch
    from inference_pio.kernels.triton.latent_decode import latent_decode_attention

    generator = torch.Generator().manual_seed(case.capacity)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device, case.dtype)

    query, query_rope = draw(case.batch, case.heads, case.width), draw(case.batch, case.heads, case.rope)
    pages, table, lists, mask = -(-case.capacity // PAGE), None, None, None
    cache = draw(case.batch, case.capacity, case.width + case.rope)
    whole = cache.clone()
    if case.paged:
        order = torch.randperm(case.batch * pages, generator=generator)
        table = order.view(case.batch, pages).int().to(device)
        cache = draw(case.batch * pages, PAGE, case.width + case.rope)
        whole = cache[table.long()].flatten(1, 2)
    lengths = torch.tensor(case.lengths, dtype=torch.int32, device=device)
    starts = None if case.starts is None else torch.tensor(case.starts, dtype=torch.int32, device=device)
    if not case.paged:  # what lies behind the length was never written, what lies before the start is padding
        tokens = torch.arange(case.capacity, device=device).expand(case.batch, -1)
        cache[tokens >= lengths.view(-1, 1)] = float("nan")
        if starts is not None:
            cache[tokens < starts.view(-1, 1)] = float("nan")
    if case.listed:
        kept = (torch.rand(case.batch, 1, pages, generator=generator) < 0.5).to(device)
        indices = kept.logical_not().to(torch.uint8).sort(dim=-1, stable=True).indices.int().contiguous()
        lists = PageList(kept.sum(-1).int(), indices)
        mask = kept.repeat_interleave(PAGE, -1)[:, None, :, : whole.shape[1]]
    parts = [cache[..., : case.width], cache[..., case.width :]]
    if case.parted:
        parts = [part.contiguous() for part in parts]
    scratch = None
    if case.launch:
        scratch = DecodeScratch.of(case.batch, case.heads, case.width, case.launch, query.device)
        scratch.partial.fill_(float("nan"))
        scratch.weight.fill_(float("nan"))
    # The interpreter's rounding to bfloat16 is not a GPU's, so there none is asked for.
    out = torch.full_like(query, float("nan"), dtype=torch.float32 if device == "cpu" else case.dtype)
    latent_decode_attention(
        query, query_rope, parts[0], parts[1], lengths, starts, scale=0.1, table=table, pages=lists, out=out,
        scratch=scratch, launch=case.launch,
    )  # fmt: skip
    unchanged = torch.eye(case.width, device=device).repeat(2 * case.heads, 1)  # keys and values are the latents
    wanted = naive_latent_attention(
        query[:, :, None], query_rope[:, :, None], whole[..., : case.width], whole[..., case.width :], unchanged,
        lengths, starts, mask=mask, scale=0.1,
    )[:, :, 0]  # fmt: skip
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if device == "cpu" else {"rtol": 1e-2, "atol": 1e-2}
    torch.testing.assert_close(out.float(), wanted, **tolerance)


CASES = [
    Case((300,)),
    Case((1,)),
    Case((0,)),
    Case((64,), launch=replace(FEW, splits=1)),
    Case((65,), launch=replace(FEW, splits=7, block=32)),
    Case((300, 77), batch=2, heads=20),
    Case((130, 300, 5), batch=3, heads=3, starts=(0, 65, 4), launch=replace(FEW, block=16)),
    Case((200,), batch=2, starts=(199, 3), parted=True),
    Case((100, 90), batch=2, heads=40, starts=(100, 0), launch=replace(FEW, rows=32)),
    Case((257, 33), batch=2, heads=8, paged=True),
    Case((300, 120), batch=2, heads=6, listed=True, launch=replace(FEW, block=32)),
    Case((300, 120), batch=2, heads=8, listed=True, paged=True, starts=(66, 0)),
    Case((150,), heads=20, width=512, rope=64, capacity=160, launch=None),
    Case((150,), heads=2, width=128, rope=16, dtype=torch.float16),
]


@needs_triton
@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_is_exact_in_the_interpreter(case: Case, interpreted: Callable[..., None]) -> None:
    interpreted(check, case)


KINDS = {"plain": {}, "padded": {"starts": (1,)}, "paged": {"paged": True}, "listed": {"listed": True}}


def _compile(compiler: Compiler, capability: int, width: int, rope: int, heads: int, kind: str) -> None:
    from inference_pio.kernels.page_list import PageList
    from inference_pio.kernels.triton.decode import join_kernel
    from inference_pio.kernels.triton.latent_decode import latent_decode_attention, latent_decode_kernel

    compiler.for_machine(capability, latent_decode_kernel, join_kernel)
    case = Case((37,), **KINDS[kind])  # type: ignore[arg-type]
    cache = torch.zeros(1, PAGE, width + rope, dtype=torch.bfloat16)
    lists = PageList(torch.ones(1, 1, dtype=torch.int32), torch.zeros(1, 1, 5, dtype=torch.int32))
    launch = choose_latent_launch(MACHINES[capability], 1, heads, width, rope, 32768)
    latent_decode_attention(
        torch.zeros(1, heads, width, dtype=torch.bfloat16), torch.zeros(1, heads, rope, dtype=torch.bfloat16),
        cache[..., :width], cache[..., width:], torch.tensor([37], dtype=torch.int32),
        torch.tensor([1], dtype=torch.int32) if case.starts else None, scale=0.1,
        table=torch.zeros(1, 1, dtype=torch.int32) if case.paged else None, pages=lists if case.listed else None,
        launch=launch,
    )  # fmt: skip
    split, join = compiler.found
    for code in (split, join):
        code.assert_it_fits(MACHINES[capability])
        assert not code.counts["LDG U16"], code
    loads = launch.block * (width + rope) * 2 // 16 // (32 * launch.warps)  # of 16 bytes, each thread's, for one block
    buffers = split.counts["LDGSTS 128"] / loads
    assert buffers in range(1, launch.stages + 1), split  # a block is loaded once, for keys and for values
    assert kind in ("paged", "listed") or buffers == launch.stages, split
    assert kind in ("paged", "listed") or not split.counts["LDGSTS"], split  # page numbers are 4 bytes each
    assert split.counts["HMMA"], split
    assert join.counts["LDG 128"], join


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("kind", ["plain", "paged"])
def test_it_compiles_to_wide_loads_without_spilling(capability: int, kind: str, compiler: Compiler) -> None:
    _compile(compiler, capability, 512, 64, 20, kind)


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [(64, 32, 20), (128, 64, 20), (256, 64, 20), (512, 64, 16), (512, 64, 128)])
def test_so_does_every_width(capability: int, kind: str, sizes: tuple[int, int, int], compiler: Compiler) -> None:
    _compile(compiler, capability, *sizes, kind)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("widths", [(64, 32), (512, 64)])
@pytest.mark.parametrize("length", [1, 4097, 33000])
@pytest.mark.parametrize("heads", [4, 20])
def test_gpu_it_is_exact_up_to_rounding(kind: str, widths: tuple[int, int], length: int, heads: int) -> None:
    width, rope = widths
    case = Case((length,), heads, width, rope, capacity=33024, launch=None)
    check(replace(case, **KINDS[kind]), "cuda")  # type: ignore[arg-type]


@pytest.mark.gpu
def test_gpu_one_recorded_graph_serves_every_length() -> None:
    from inference_pio.kernels.triton.decode import DecodeScratch
    from inference_pio.kernels.triton.latent_decode import latent_decode_attention
    from inference_pio.kernels.triton.launch import device_limits

    device = torch.device("cuda")
    query, query_rope = (torch.randn(2, 20, width, device=device, dtype=torch.bfloat16) for width in (512, 64))
    cache = torch.randn(2, 4096, 576, device=device, dtype=torch.bfloat16)
    latent, rope = cache[..., :512], cache[..., 512:]
    lengths = torch.tensor([7, 4096], dtype=torch.int32, device=device)
    launch = choose_latent_launch(device_limits(device), 2, 20, 512, 64, 4096)
    scratch, out = DecodeScratch.of(2, 20, 512, launch, device), torch.empty_like(query)
    given = {"scale": 0.06, "out": out, "scratch": scratch, "launch": launch}
    latent_decode_attention(query, query_rope, latent, rope, lengths, **given)  # type: ignore[arg-type]  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        latent_decode_attention(query, query_rope, latent, rope, lengths, **given)  # type: ignore[arg-type]
    unchanged = torch.eye(512, device=device).repeat(40, 1)
    for length in (1, 64, 65, 1000, 4096):
        lengths.copy_(torch.tensor([length, 4097 - length]))
        out.fill_(float("nan"))
        graph.replay()
        wanted = naive_latent_attention(
            query[:, :, None], query_rope[:, :, None], latent, rope, unchanged, lengths, scale=0.06
        )
        torch.testing.assert_close(out.float(), wanted[:, :, 0], rtol=1e-2, atol=1e-2)
