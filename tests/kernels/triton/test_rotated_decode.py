"""Rotation, cache and attention in one launch against its definition: interpreted, compiled, and on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from inference_pio.compat import has_triton
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.rotated_decode import naive_rotated_decode
from inference_pio.kernels.triton.launch import PAGE, DecodeLaunch, choose_rotated_launch
from tests.kernels.triton.compiling import MACHINES, Compiler

needs_triton = pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")
UNWRITTEN = float("nan")


@dataclass(frozen=True)
class Case:
    """Sizes, how much each row holds with its new token, where rows begin, and how heads are normed and turned."""

    lengths: tuple[int, ...]
    heads: int = 4
    key_heads: int = 1
    width: int = 64
    turned: int = 64
    capacity: int = 300
    starts: tuple[int, ...] | None = None
    batch: int = 1
    normed: bool = True
    interleaved: bool = False
    splits: int | None = 3
    dtype: torch.dtype = torch.bfloat16


def inputs(case: Case, device: str) -> tuple[list[Any], dict[str, Any]]:
    """What `rotated_decode` takes; of the cache nothing is written where rows have not come to, or not begun."""
    generator = torch.Generator().manual_seed(case.capacity + case.heads)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device, case.dtype)

    qkv = drawn(case.batch, (case.heads + 2 * case.key_heads) * case.width + 8)[:, :-8]
    cache = [drawn(case.batch, case.capacity, case.key_heads, case.width) for _ in range(2)]
    lengths = torch.tensor(case.lengths, dtype=torch.int32, device=device)
    starts = None if case.starts is None else torch.tensor(case.starts, dtype=torch.int32, device=device)
    tokens = torch.arange(case.capacity, device=device).expand(case.batch, case.capacity)
    for tensor in cache:
        tensor[tokens >= lengths.view(-1, 1) - 1] = UNWRITTEN
        if starts is not None:
            tensor[tokens < starts.view(-1, 1)] = UNWRITTEN
    angles = torch.rand(case.capacity, case.turned, generator=generator).to(device) * 6
    tables = [angles.cos().to(case.dtype), angles.sin().to(case.dtype)]
    positions = (lengths - 1 - (0 if starts is None else starts)).expand(case.batch).contiguous()
    norms = [drawn(case.width) if case.normed else None for _ in range(2)]
    how = {"heads": case.heads, "key_heads": case.key_heads, "query_norm": norms[0], "key_norm": norms[1], "eps": 1e-6}
    return [qkv, *cache, *tables, positions, lengths, starts], how | {"interleaved": case.interleaved}


def check(case: Case, device: str = "cpu", dependent: bool = False) -> None:
    from inference_pio.kernels.triton.decode import DecodeScratch
    from inference_pio.kernels.triton.rotated_decode import rotated_decode

    theirs, how = inputs(case, device)
    for tensor in theirs[1:3]:  # NaN times nothing is NaN in the definition
        tensor.nan_to_num_(0.0)
    wanted = naive_rotated_decode(*theirs, **how)
    chosen = choose_rotated_launch(MACHINES[90], case.batch, case.key_heads, case.width, case.capacity)
    launch = chosen if case.splits is None else DecodeLaunch(case.splits)
    for counted in (0, case.key_heads):  # joined by a kernel of its own, and by the last program
        ours, _ = inputs(case, device)
        scratch = DecodeScratch.of(case.batch, case.heads, case.width, launch, ours[0].device, counted=counted)
        scratch.partial.fill_(UNWRITTEN)
        scratch.weight.fill_(UNWRITTEN)
        # The interpreter's rounding to bfloat16 is not a GPU's, so there none is asked for.
        out = torch.full_like(wanted, UNWRITTEN, dtype=torch.float32 if device == "cpu" else case.dtype)
        rotated_decode(*ours, **how, out=out, scratch=scratch, launch=launch, dependent=dependent)
        tolerance = {"rtol": 1e-2, "atol": 1e-2} if device == "cuda" else {"rtol": 2e-3, "atol": 2e-3}
        torch.testing.assert_close(out.float(), wanted.float(), **tolerance)
        for held, expected in zip(ours[1:3], theirs[1:3], strict=True):
            held = held.nan_to_num(0.0)
            torch.testing.assert_close(held.float(), expected.float(), rtol=1e-2, atol=1e-3)
            assert ((held != expected).sum() <= (0 if not case.normed else held.numel() // 50)).item()
        assert scratch.arrived is None or not scratch.arrived.any(), "the next launch would join too early"


CASES = [
    Case((300,)),
    Case((1,)),
    Case((64,), splits=2, normed=False),
    Case((65,), splits=7, interleaved=True),
    Case((66,), splits=7, turned=32),
    Case((300, 77), batch=2, heads=8, turned=32, interleaved=True),
    Case((130, 300, 5), batch=3, key_heads=2, heads=6, starts=(0, 65, 4)),
    Case((200,), batch=2, starts=(199, 3), heads=1),
    Case((150,), heads=20, width=128, turned=128, dtype=torch.float16),
    Case((150,), heads=2, key_heads=2, width=256, turned=64, splits=2),
]


@needs_triton
@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_is_its_definition_in_the_interpreter(case: Case, interpreted: Callable[..., None]) -> None:
    interpreted(check, case)


def refused() -> None:
    from inference_pio.kernels.triton.rotated_decode import rotated_decode

    tensors, how = inputs(Case((7,), normed=False), "cpu")
    with pytest.raises(InvalidSetting, match=r"all alike, and not torch\.float32"):
        rotated_decode(*(tensor.float() for tensor in tensors[:5]), *tensors[5:], **how)
    with pytest.raises(InvalidSetting, match="no program for earlier tokens"):
        rotated_decode(*tensors, **how, launch=DecodeLaunch(1))
    wide, of_heads = inputs(Case((7,), heads=33, width=128, turned=128, capacity=7), "cpu")
    with pytest.raises(InvalidSetting, match="33 heads of 128 share a key head, and a program turns at most 4096"):
        rotated_decode(*wide, **of_heads)
    tensors[5] = tensors[5].long()
    with pytest.raises(InvalidSetting, match="positions and lengths are int32"):
        rotated_decode(*tensors, **how)


@needs_triton
def test_what_it_cannot_serve_is_refused(interpreted: Callable[..., None]) -> None:
    interpreted(refused)


def far_apart(device: str = "cpu") -> None:
    """Tokens as far from each other as in caches of many heads and tokens; what lies between is never touched."""
    from inference_pio.kernels.triton.rotated_decode import rotated_decode

    case, token = Case((2 * PAGE + 3,), heads=1, capacity=2 * PAGE + 3, normed=False), 2**24
    tensors, how = inputs(case, device)
    wanted = naive_rotated_decode(*(one if one is None else one.nan_to_num(0.0) for one in tensors), **how)
    for part in (1, 2):
        near = tensors[part]
        room = near.new_empty((case.capacity - 1) * token + case.width)
        tensors[part] = room.as_strided(near.shape, (room.numel(), token, case.width, 1))
        tensors[part].copy_(near.nan_to_num(0.0))
    assert 2 * PAGE * token == 2**31
    out = rotated_decode(*tensors, **how, launch=DecodeLaunch(2), out=torch.empty_like(wanted))
    torch.testing.assert_close(out, wanted, rtol=1e-2, atol=1e-2)


@needs_triton
def test_a_page_may_lie_further_off_than_int32_counts(interpreted: Callable[..., None]) -> None:
    interpreted(far_apart)


@pytest.mark.gpu
def test_gpu_a_page_may_lie_further_off_than_int32_counts() -> None:
    far_apart("cuda")


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(
    "case",
    [
        Case((1,), heads=32, key_heads=8, width=128, turned=128, capacity=1024),
        Case((1,), heads=32, key_heads=4, width=128, turned=64, capacity=1024, starts=(0,)),
        Case((1,), heads=16, key_heads=2, width=256, turned=256, capacity=1024, interleaved=True),
        Case((1,), heads=64, key_heads=2, width=128, turned=128, capacity=1024, starts=(0,)),  # as wide as is served
    ],
    ids=str,
)
def test_it_compiles_without_spilling(capability: int, case: Case, compiler: Compiler) -> None:
    from inference_pio.kernels.triton.decode import DecodeScratch, join_kernel
    from inference_pio.kernels.triton.rotated_decode import rotated_decode, rotated_decode_kernel

    compiler.for_machine(capability, rotated_decode_kernel, join_kernel)
    tensors, how = inputs(case, "cpu")
    launch = choose_rotated_launch(MACHINES[capability], 1, case.key_heads, case.width, case.capacity)
    counted = case.starts is None
    scratch = DecodeScratch.of(
        1, case.heads, case.width, launch, tensors[0].device, counted=case.key_heads if counted else 0
    )
    rotated_decode(*tensors, **how, launch=launch, scratch=scratch, dependent=capability >= 90)
    code = compiler.found[0]
    code.assert_it_fits(MACHINES[capability])
    assert len(compiler.found) == (1 if counted else 2)
    assert code.counts["LDG 128"] + code.counts["LDG E 128"] >= 8, code  # the first page of keys and of values


@pytest.mark.gpu
@pytest.mark.parametrize("dependent", [False, True])
@pytest.mark.parametrize(
    "case",
    [
        *CASES,
        Case((1000,), heads=32, key_heads=8, width=128, turned=128, capacity=2048, splits=None),
        Case((5000, 33), batch=2, heads=32, key_heads=4, width=128, turned=64, capacity=8192, splits=None),
        Case((9000,), heads=32, key_heads=4, width=128, turned=128, capacity=16384, splits=None),
    ],
    ids=str,
)
def test_gpu_it_is_its_definition(case: Case, dependent: bool) -> None:
    check(case, "cuda", dependent)


@pytest.mark.gpu
def test_gpu_one_recorded_graph_serves_every_length() -> None:
    from inference_pio.kernels.triton.decode import DecodeScratch
    from inference_pio.kernels.triton.rotated_decode import rotated_decode

    case = Case((300,), heads=8, key_heads=2, width=128, turned=128)
    tensors, how = inputs(case, "cuda")
    tensors[1].nan_to_num_(0.0)
    tensors[2].nan_to_num_(0.0)
    launch = choose_rotated_launch(MACHINES[90], 1, 2, 128, case.capacity)
    scratch = DecodeScratch.of(1, 8, 128, launch, tensors[0].device, counted=2)
    out = torch.empty(1, 8, 128, device="cuda", dtype=case.dtype)
    given = {"out": out, "scratch": scratch, "launch": launch, "dependent": True}
    rotated_decode(*tensors, **how, **given)  # compiles, which no graph may do
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        rotated_decode(*tensors, **how, **given)
    for length in (1, 63, 64, 65, 200, 300):
        tensors[6].fill_(length)
        tensors[5].fill_(length - 1)
        graph.replay()
        wanted = naive_rotated_decode(*(t.clone() if t is not None else None for t in tensors), **how)
        torch.testing.assert_close(out.float(), wanted.float(), rtol=1e-2, atol=1e-2)
    assert PAGE == 64, "lengths around a page's end are meant"
