"""The walk over the keys where a mask is read: against attention as it is defined, compiled, and on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from inference_pio.errors import InvalidSetting
from inference_pio.kernels.attention import naive_attention
from inference_pio.kernels.mask_tiles import least_of
from inference_pio.kernels.triton.flash_launch import choose_flash_launch
from inference_pio.kernels.triton.launch import AMPERE
from tests.kernels.triton.compiling import MACHINES, Compiler
from tests.kernels.triton.test_flash import DESCRIBED, SMALL, WIDE, Case, assert_close, needs_triton

DTYPES = (torch.bool, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Mask:
    """A mask of one `dtype` and `kind` for each row, or `rows` and `heads` of it for all; `lead`: it is cut from a
    longer one, that many keys from its beginning, so that its rows begin anywhere."""

    kind: str
    dtype: torch.dtype = torch.bool
    rows: int = 1
    heads: int = 1
    lead: int = 0
    queries: int | None = None

    def made(self, case: Case, device: str) -> torch.Tensor:
        queries = self.queries or case.queries
        size = (self.rows, self.heads, queries, case.keys + self.lead)
        generator = torch.Generator().manual_seed(7)
        seen = torch.rand(size, generator=generator) > 0.4
        places = torch.arange(case.keys + self.lead) - self.lead
        if self.kind == "documents":
            own = torch.arange(queries) + case.keys - queries
            seen = ((own[:, None] // 40 == places // 40) & (places <= own[:, None])).expand(size)
        if self.kind == "tiles of their own":
            first = 32 * (torch.arange(self.rows * self.heads) % 4).reshape(self.rows, self.heads, 1, 1)
            seen = ((places >= first) & (places < first + 48)).expand(size)
        if self.kind == "blind rows":
            seen[:, :, ::3] = False
        if self.kind == "all":
            seen = torch.ones(size, dtype=torch.bool)
        if self.dtype == torch.bool:
            return seen.contiguous().to(device)[..., self.lead :]
        added = torch.randn(size, generator=generator) if self.kind != "documents" else torch.zeros(size)
        hidden = torch.finfo(self.dtype).min if self.kind != "random" else float("-inf")
        return added.to(self.dtype).masked_fill(~seen, hidden).to(device)[..., self.lead :]


def wanted_of(query, key, value, mask, scale=None):  # type: ignore[no-untyped-def]
    """The definition; a row of which nothing is seen gives zeros."""
    seen = mask if mask.dtype == torch.bool else ~(mask < least_of(mask.dtype))
    told = mask if mask.dtype == torch.bool else mask.float().masked_fill(~seen, float("-inf"))
    return naive_attention(query, key, value, told, scale=scale).nan_to_num(0.0)


def check_masked(case: Case, mask: Mask, device: str = "cpu") -> None:
    from inference_pio.kernels.triton.flash import flash_attention

    query, key, value = case.tensors(device)
    made = mask.made(case, device)
    lse = torch.full(query.shape[:3], float("nan"), device=device)
    for _ in range(2):  # the second time from what was found out the first time
        out = torch.full_like(query, float("nan"), dtype=torch.float32 if device == "cpu" else case.dtype)
        flash_attention(
            query, key, value, causal=False, mask=made, scale=case.scale, out=out, lse=lse, launch=case.launch
        )
        assert_close(out, wanted_of(query, key, value, made, case.scale), device)
    added = made if made.dtype != torch.bool else torch.zeros(()).to(device).masked_fill(~made, float("-inf"))
    added = added.float().masked_fill(added < -1e29 if made.dtype != torch.float16 else added < -32752, float("-inf"))
    scores = query.float() @ key.float().repeat_interleave(case.heads // case.key_heads, 1).mT
    sums = (scores * (case.width**-0.5 if case.scale is None else case.scale) + added).logsumexp(-1)
    torch.testing.assert_close(lse, sums, rtol=1e-3, atol=1e-3 if device == "cuda" else 1e-5)


MASKED = [
    *((Case(heads=2, queries=17, keys=130), Mask("random", dtype)) for dtype in DTYPES),
    *((Case(heads=4, queries=65, keys=33), Mask("blind rows", dtype)) for dtype in DTYPES),
    *((Case(heads=2, key_heads=2, queries=130, keys=130), Mask("documents", dtype, lead=1)) for dtype in DTYPES),
    (Case(batch=2, heads=4, key_heads=2, queries=17, keys=130, width=128), Mask("random", rows=2)),
    (Case(batch=2, heads=4, key_heads=1, queries=17, keys=33), Mask("random", torch.float32, heads=4)),
    (Case(batch=2, heads=4, key_heads=2, queries=65, keys=130), Mask("blind rows", torch.bfloat16, 2, 4, lead=3)),
    (Case(batch=2, heads=4, key_heads=2, queries=65, keys=130), Mask("tiles of their own", torch.float32, 2, 4)),
    (Case(batch=2, heads=4, key_heads=2, queries=65, keys=130), Mask("tiles of their own", rows=2)),
    (Case(batch=2, heads=4, key_heads=2, queries=65, keys=130), Mask("tiles of their own", heads=4)),
    (Case(batch=2, heads=2, queries=1, keys=33), Mask("random", rows=2, lead=31)),
    (Case(queries=65, keys=130), Mask("random", queries=1)),
    (Case(queries=65, keys=130), Mask("random", torch.float32, queries=1, lead=1)),
    (Case(queries=130, keys=160, launch=WIDE, scale=0.3), Mask("documents", torch.float32)),
    (Case(queries=130, keys=160, launch=DESCRIBED, scale=0.3), Mask("documents")),
    (Case(queries=70, keys=131, launch=DESCRIBED, dtype=torch.float16), Mask("random", torch.float16, lead=5)),
    (Case(queries=65, keys=130), Mask("all")),
    (Case(queries=65, keys=130, width=256), Mask("all", torch.float32)),
]


@needs_triton
@pytest.mark.parametrize(("case", "mask"), MASKED, ids=str)
def test_a_mask_is_read_exactly_in_the_interpreter(
    case: Case, mask: Mask, interpreted: Callable[..., None]
) -> None:  # fmt: skip
    interpreted(check_masked, case, mask)


def check_what_is_computed() -> None:
    """Keys of hidden tiles are not touched, and a mask that was written to is read anew."""
    from inference_pio.kernels.triton.flash import flash_attention

    case = Case(queries=128, keys=128)
    query, key, value = case.tensors("cpu")
    mask = torch.ones(1, 1, 128, 128, dtype=torch.bool)
    mask[..., 64:] = False
    key[:, :, 64:], value[:, :, 64:] = float("nan"), float("nan")
    out = flash_attention(query, key, value, causal=False, mask=mask, launch=SMALL)
    seen = (query, key[:, :, :64], value[:, :, :64])
    torch.testing.assert_close(out.float(), naive_attention(*seen), rtol=2e-2, atol=2e-2)
    mask[..., :32] = False
    out = flash_attention(query, key, value, causal=False, mask=mask, launch=SMALL)
    seen = (query, key[:, :, 32:64], value[:, :, 32:64])
    torch.testing.assert_close(out.float(), naive_attention(*seen), rtol=2e-2, atol=2e-2)


@needs_triton
def test_what_a_mask_hides_by_whole_tiles_is_not_computed(interpreted: Callable[..., None]) -> None:
    interpreted(check_what_is_computed)


@needs_triton
def test_a_mask_stands_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from inference_pio.kernels.triton import support
    from inference_pio.kernels.triton.flash import flash_attention

    monkeypatch.setattr(support, "_device", lambda device: None)
    mask = torch.ones(37, 37, dtype=torch.bool)
    starts = torch.zeros(1, dtype=torch.int32)
    for given in ({}, {"causal": False, "starts": starts}, {"causal": False, "certified": 0.1}):
        with pytest.raises(InvalidSetting, match="a mask tells everything: give causal=False"):
            flash_attention(*Case().tensors("cpu"), mask=mask, **given)  # type: ignore[arg-type]


def _compile(compiler: Compiler, capability: int, case: Case, dtype: torch.dtype) -> None:
    from inference_pio.kernels.triton.flash import flash_attention, flash_kernel
    from inference_pio.kernels.triton.mask_tiles import tile_kinds_kernel

    compiler.for_machine(capability, tile_kinds_kernel, flash_kernel)
    launch = choose_flash_launch(MACHINES[capability], case.width, mask=dtype)
    mask = torch.zeros(1, 1, case.queries, case.keys, dtype=dtype)
    flash_attention(*case.tensors("cpu"), causal=False, mask=mask, launch=launch)
    kinds, code = compiler.found
    for found in (kinds, code):
        found.assert_it_fits(MACHINES[capability])
        assert not found.counts["LDG U8"] + found.counts["LDG U16"], found
    assert code.counts["HGMMA" if capability == 90 else "HMMA"], code
    assert code.counts["LDGSTS 128"] >= (1 if capability == 90 else 16), code
    assert code.registers <= (launch.registers or 255), code


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_it_reads_masks_in_wide_loads_without_spilling(
    capability: int, dtype: torch.dtype, compiler: Compiler
) -> None:  # fmt: skip
    _compile(compiler, capability, Case(heads=8, key_heads=2, queries=256, keys=256, width=128), dtype)


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [64, 128, 256])
def test_so_does_every_width(capability: int, dtype: torch.dtype, width: int, compiler: Compiler) -> None:
    _compile(compiler, capability, Case(heads=8, key_heads=2, queries=256, keys=256, width=width), dtype)


GPU_CASES = [
    (Case(heads=32, key_heads=8, queries=4096, keys=4096, width=128, launch=None), "documents"),
    (Case(batch=2, heads=8, key_heads=2, queries=1000, keys=1777, width=128, launch=None), "random"),
    (Case(batch=2, heads=8, key_heads=8, queries=700, keys=700, launch=None), "blind rows"),
    (Case(heads=8, key_heads=1, queries=300, keys=1111, width=256, launch=None), "random"),
    (Case(heads=8, key_heads=4, queries=2000, keys=2000, dtype=torch.float16, launch=None), "all"),
]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("case", "kind"), GPU_CASES, ids=str)
@pytest.mark.parametrize("lead", [0, 3])
def test_gpu_a_mask_is_read_exactly_up_to_rounding(case: Case, kind: str, dtype: torch.dtype, lead: int) -> None:
    check_masked(case, Mask(kind, dtype, lead=lead), "cuda")
    if case.batch > 1:
        check_masked(case, Mask("tiles of their own", dtype, rows=case.batch, heads=case.heads, lead=lead), "cuda")
        check_masked(case, Mask(kind, dtype, rows=case.batch, heads=case.heads, lead=lead), "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("width", [64, 128, 256])
def test_gpu_launches_without_the_copy_engine_read_masks_too(width: int) -> None:
    for dtype in DTYPES:
        launch = choose_flash_launch(AMPERE, width, mask=dtype)
        case = Case(heads=8, key_heads=2, queries=500, keys=900, width=width, launch=launch)
        check_masked(case, Mask("blind rows", dtype), "cuda")
