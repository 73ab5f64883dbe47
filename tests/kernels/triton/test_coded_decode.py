"""The decode kernel for codes against attention as it is defined: interpreted, compiled, and on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch

from inference_pio.compat import has_triton
from inference_pio.kernels.coded_decode import naive_coded_decode
from inference_pio.kernels.page_codes import PageForm
from inference_pio.kernels.triton.launch import CodedLaunch, choose_coded_launch
from tests.kernels.test_coded_decode import cached
from tests.kernels.triton.compiling import MACHINES, Compiler

needs_triton = pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")


@dataclass(frozen=True)
class Case:
    """Pages that are held, recent tokens behind them, and the sizes; `lengths` where rows see less than there is."""

    pages: int
    recent: int
    heads: int = 4
    key_heads: int = 1
    width: int = 64
    batch: int = 1
    room: int = 5
    sharing: int = 64
    lengths: tuple[int, ...] | None = None
    starts: tuple[int, ...] | None = None
    splits: int | None = 3
    dtype: torch.dtype = torch.bfloat16


def check(case: Case, device: str = "cpu") -> None:
    from inference_pio.kernels.triton.coded_decode import coded_decode
    from inference_pio.kernels.triton.decode import DecodeScratch

    form = PageForm(8, case.sharing)
    view, *_ = cached(
        case.pages, case.recent, batch=case.batch, key_heads=case.key_heads, width=case.width, room=case.room,
        values=form, dtype=case.dtype,
    )  # fmt: skip
    moved = {name: getattr(view, name).to(device) for name in ("recent_keys", "recent_values", "pages")}
    parts = {name: tuple(part.to(device) for part in getattr(view, name)) for name in ("keys", "values")}
    view = replace(view, **moved, **parts)
    chance = torch.Generator().manual_seed(2)
    query = torch.randn(case.batch, case.heads, case.width, generator=chance).to(device, case.dtype)
    lengths = torch.tensor(case.lengths or (64 * case.pages + case.recent,), dtype=torch.int32, device=device)
    starts = None if case.starts is None else torch.tensor(case.starts, dtype=torch.int32, device=device)
    wanted = naive_coded_decode(query, view, lengths, starts)
    for recent in (view.recent_keys, view.recent_values):  # what lies behind the length was never written
        recent[:, :, max(0, int(lengths.max()) - 64 * case.pages) :] = float("nan")
    for part in (view.keys[1], view.values[2]):
        part[:, :, case.pages :] = float("nan")
    chosen = choose_coded_launch(MACHINES[90], case.batch, case.key_heads, case.width, view.tokens)
    launch = chosen if case.splits is None else CodedLaunch(case.splits)
    scratch = DecodeScratch.of(case.batch, case.heads, case.width, launch, query.device)
    scratch.partial.fill_(float("nan"))
    scratch.weight.fill_(float("nan"))
    # The interpreter's rounding to bfloat16 is not a GPU's, so there none is asked for.
    out = torch.full_like(query, float("nan"), dtype=torch.float32 if device == "cpu" else case.dtype)
    coded_decode(query, view, lengths, starts, out=out, scratch=scratch, launch=launch)
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if device == "cpu" else {"rtol": 1e-2, "atol": 1e-2}
    torch.testing.assert_close(out.float(), wanted, **tolerance)


CASES = [
    Case(0, 1),
    Case(0, 64, splits=2),
    Case(0, 127, splits=7),
    Case(1, 63),
    Case(2, 64, splits=2),
    Case(5, 0, splits=3),
    Case(5, 100, splits=9),
    Case(4, 65, batch=2, heads=8, key_heads=2, splits=4),
    Case(4, 65, batch=2, heads=8, key_heads=2, starts=(70, 1)),
    Case(3, 90, batch=2, heads=6, key_heads=2, starts=(282, 200), splits=5),
    Case(3, 90, batch=2, lengths=(282, 250), starts=(0, 250)),
    Case(3, 70, heads=10, key_heads=2, width=128),
    Case(3, 70, heads=2, key_heads=2, width=128, sharing=32, dtype=torch.float16),
    Case(2, 70, width=256, heads=20, splits=2),
    Case(1, 0, lengths=(0,)),
]


@needs_triton
@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_is_exact_in_the_interpreter(case: Case, interpreted: Callable[..., None]) -> None:
    interpreted(check, case)


def _compile(compiler: Compiler, capability: int, width: int, *, padded: bool = False, group: int = 4) -> None:
    from inference_pio.kernels.triton.coded_decode import coded_decode, coded_decode_kernel
    from inference_pio.kernels.triton.decode import join_kernel

    compiler.for_machine(capability, coded_decode_kernel, join_kernel)
    view, *_ = cached(1, 3, batch=1, width=width)
    launch = choose_coded_launch(MACHINES[capability], 1, 2, width, 32768)
    starts = torch.tensor([1], dtype=torch.int32) if padded else None
    query = torch.zeros(1, 2 * group, width, dtype=torch.bfloat16)
    coded_decode(query, view, torch.tensor([67], dtype=torch.int32), starts, launch=launch)
    split, _join = compiler.found
    for code in compiler.found:
        code.assert_it_fits(MACHINES[capability])
    assert split.counts["HMMA"], split
    tiles = 2 * launch.tokens * width / (16 * split.threads)  # loads a thread, of keys and values
    assert split.counts["LDGSTS 128"] + split.counts["LDG 128"] >= launch.stages * max(1, tiles), split
    assert not split.counts["LDG U8"], split


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("padded", [False, True])
def test_it_compiles_to_wide_loads_without_spilling(capability: int, padded: bool, compiler: Compiler) -> None:
    _compile(compiler, capability, 128, padded=padded)


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("width", [64, 128, 256])
@pytest.mark.parametrize("group", [1, 8, 16])
def test_so_does_every_width(capability: int, width: int, group: int, compiler: Compiler) -> None:
    _compile(compiler, capability, width, group=group)


@pytest.mark.gpu
@pytest.mark.parametrize("width", [64, 128, 256])
@pytest.mark.parametrize("pages", [0, 1, 500])
@pytest.mark.parametrize("starts", [None, (5, 64)])
def test_gpu_it_is_exact_up_to_rounding(width: int, pages: int, starts: tuple[int, ...] | None) -> None:
    check(
        Case(pages, 100, heads=16, key_heads=4, width=width, batch=2, room=512, starts=starts, splits=None), "cuda"
    )  # fmt: skip
