"""The flash kernel against attention as it is defined: interpreted on awkward shapes, compiled, and on a GPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from inference_pio.compat import has_triton
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.attention import naive_attention
from inference_pio.kernels.block_sparse import BlockList, naive_block_sparse_attention
from inference_pio.kernels.certified_attention import certified_attention
from inference_pio.kernels.triton.flash_launch import FlashLaunch, choose_flash_launch
from inference_pio.kernels.triton.launch import AMPERE, device_limits
from tests.kernels.triton.compiling import MACHINES, Compiler

needs_triton = pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")
SMALL = FlashLaunch(32, 32, 4, 2)
WIDE = FlashLaunch(64, 32, 4, 2)
DESCRIBED = FlashLaunch(32, 16, 4, 2, described=True)


@dataclass(frozen=True)
class Case:
    """Sizes, and what hides keys: `starts` and `ends` a row of the batch."""

    batch: int = 1
    heads: int = 2
    key_heads: int = 1
    queries: int = 37
    keys: int = 37
    width: int = 64
    causal: bool = True
    starts: tuple[int, ...] | None = None
    ends: tuple[int, ...] | None = None
    dtype: torch.dtype = torch.bfloat16
    scale: float | None = None
    launch: FlashLaunch | None = SMALL

    def tensors(self, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries as a projection leaves them, tokens before heads; keys and values as a cache holds them."""
        generator = torch.Generator().manual_seed(self.queries * 1000 + self.keys)
        query = torch.randn(self.batch, self.queries, self.heads, self.width, generator=generator).transpose(1, 2)
        size = (self.batch, self.key_heads, self.keys, self.width)
        key, value = torch.randn(size, generator=generator), torch.randn(size, generator=generator)
        return tuple(tensor.to(device, self.dtype) for tensor in (2 * query, key, value))  # type: ignore[return-value]

    def spoil(self, tensor: torch.Tensor) -> torch.Tensor:
        """Keys or values with NaN wherever padding is."""
        padding = ~dataclasses.replace(self, queries=1, causal=False).seen(tensor.device.type)
        return tensor.masked_fill(padding.mT, float("nan"))

    def seen(self, device: str) -> torch.Tensor:
        keys = torch.arange(self.keys, device=device)
        seen = torch.ones(self.batch, 1, self.queries, self.keys, dtype=torch.bool, device=device)
        if self.causal:
            seen = seen.tril(self.keys - self.queries)
        for bound, hidden in ((self.starts, keys.__lt__), (self.ends, keys.__ge__)):
            if bound is not None:
                seen = seen & ~hidden(torch.tensor(bound, device=device)[:, None])[:, None, None]
        return seen


def int32(numbers: tuple[int, ...] | None, device: str) -> torch.Tensor | None:
    return None if numbers is None else torch.tensor(numbers, dtype=torch.int32, device=device)


def check_dense(case: Case, device: str = "cpu") -> None:
    from inference_pio.kernels.triton.flash import flash_attention

    query, key, value = case.tensors(device)
    lse = torch.full(query.shape[:3], float("nan"), device=device)
    out = torch.full_like(query, float("nan"), dtype=torch.float32 if device == "cpu" else case.dtype)
    bounds = {"starts": int32(case.starts, device), "ends": int32(case.ends, device)}
    spoilt = [case.spoil(tensor) for tensor in (key, value)]
    flash_attention(
        query, *spoilt, causal=case.causal, scale=case.scale, out=out, lse=lse, launch=case.launch, **bounds
    )
    seen = case.seen(device)
    wanted = naive_attention(query, key, value, seen, scale=case.scale).nan_to_num(0.0)
    assert_close(out, wanted, device)
    scale = case.width**-0.5 if case.scale is None else case.scale
    scores = query.float() @ key.float().repeat_interleave(case.heads // case.key_heads, 1).transpose(2, 3) * scale
    sums = scores.masked_fill(~seen, float("-inf")).logsumexp(-1)
    torch.testing.assert_close(lse, sums, rtol=1e-3, atol=1e-3 if device == "cuda" else 1e-5)


def check_sparse(case: Case, key_block: int, density: float, device: str = "cpu") -> None:
    from inference_pio.kernels.triton.flash import flash_attention

    query, key, value = case.tensors(device)
    launch = case.launch or choose_flash_launch(device_limits(query.device), case.width)
    lists = BlockList.from_kept(kept_blocks(case, launch.query_block, key_block, density).to(device),
                                launch.query_block, key_block)  # fmt: skip
    starts = int32(case.starts, device)
    out = torch.full_like(query, float("nan"), dtype=torch.float32 if device == "cpu" else case.dtype)
    flash_attention(query, key, value, causal=case.causal, lists=lists, starts=starts, out=out, launch=case.launch)
    if starts is None:
        wanted = naive_block_sparse_attention(query, key, value, lists, causal=case.causal)
    else:
        seen = lists.mask(case.queries, case.keys) & case.seen(device)
        wanted = naive_attention(query, key, value, seen).nan_to_num(0.0)
    assert_close(out, wanted, device)


def kept_blocks(case: Case, query_block: int, key_block: int, density: float) -> torch.Tensor:
    """Random blocks, of those alone that hold a key that some query of theirs sees."""
    shape = (case.batch, case.heads, -(-case.queries // query_block), -(-case.keys // key_block))
    drawn = torch.rand(shape, generator=torch.Generator().manual_seed(3)) < density
    seen = torch.nn.functional.pad(
        case.seen("cpu"), (0, -case.keys % key_block, 0, -case.queries % query_block)
    ).reshape(case.batch, 1, shape[2], query_block, shape[3], key_block)
    return drawn & seen.any(5).any(3)


def assert_close(out: torch.Tensor, wanted: torch.Tensor, device: str) -> None:
    """The interpreter computes in float32 throughout (its rounding to bfloat16 is not a GPU's: none is asked for)."""
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if device == "cpu" else {"rtol": 1e-2, "atol": 1e-2}
    torch.testing.assert_close(out.float(), wanted, **tolerance)
    if device == "cuda":
        assert float((out.float() - wanted).norm()) <= 5e-3 * float(wanted.norm())  # of nothing, exactly nothing


DENSE = [
    Case(),
    Case(queries=1, keys=33),
    Case(batch=2, heads=4, key_heads=2, queries=70, keys=131),
    Case(queries=64, keys=64, launch=WIDE, scale=0.3),
    Case(queries=5, keys=3),
    Case(heads=3, key_heads=3, queries=40, keys=65, causal=False),
    Case(batch=3, queries=50, keys=50, starts=(0, 31, 49)),
    Case(batch=2, queries=50, keys=70, starts=(5, 64), launch=WIDE),
    Case(batch=3, queries=40, keys=100, causal=False, ends=(100, 64, 1)),
    Case(batch=2, queries=96, keys=96, starts=(33, 0), ends=(96, 40)),
    Case(batch=2, queries=20, keys=20, causal=False, starts=(10, 0), ends=(4, 0)),
    Case(heads=8, queries=33, keys=90, width=128, dtype=torch.float16, launch=WIDE),
    Case(queries=33, keys=40, width=256),
    Case(heads=4, key_heads=2, queries=70, keys=131, launch=DESCRIBED),
    Case(batch=2, queries=50, keys=50, starts=(0, 31), launch=DESCRIBED),
]


@needs_triton
@pytest.mark.parametrize("case", DENSE, ids=str)
def test_it_is_exact_in_the_interpreter(case: Case, interpreted: Callable[..., None]) -> None:
    interpreted(check_dense, case)


def check_certified(case: Case, eps: float, sink: float, counted: bool, device: str = "cpu") -> None:
    """What the log of the sums lacks is what was left out: never more than promised, and no output is further off."""
    from inference_pio.kernels.triton.flash import flash_attention

    query, key, value = case.tensors(device)
    query[..., 0], key[..., 0] = sink, 0.0
    first = 0 if case.starts is None else max(case.starts)
    key[:, :, first, 0] = sink
    launch = case.launch or choose_flash_launch(device_limits(query.device), case.width, certified=True)
    starts, skipped = int32(case.starts, device), torch.full((1,), 5, dtype=torch.int32, device=device)
    lse = torch.full(query.shape[:3], float("nan"), device=device)
    out = torch.full_like(query, float("nan"), dtype=torch.float32 if device == "cpu" else case.dtype)
    spoilt = [case.spoil(tensor) for tensor in (key, value)]
    options = {"starts": starts, "out": out, "lse": lse, "launch": launch}
    flash_attention(query, *spoilt, certified=eps, skipped=skipped, **options)
    seen, left_out = case.seen(device), int(skipped) - 5
    exact = naive_attention(query, key, value, seen).nan_to_num(0.0)
    rounding = 1e-4 if device == "cpu" else 2e-2
    assert float((out.float() - exact).abs().max()) <= 2 * eps * float(value.abs().max()) + rounding
    scores = query.float() @ key.float().repeat_interleave(case.heads // case.key_heads, 1).mT * case.width**-0.5
    whole = scores.masked_fill(~seen, float("-inf")).logsumexp(-1)
    sees = seen.any(-1).expand_as(whole)
    dropped = 1.0 - torch.exp(lse - whole)[sees]
    assert float(dropped.max()) <= eps + (1e-5 if device == "cpu" else 2e-3)
    assert bool((lse[~sees] == float("-inf")).all())
    assert bool((out[~sees] == 0).all())
    _, kept, visible = certified_attention(
        query.float(), key.float(), value.float(), eps=eps, query_block=launch.query_block,
        key_block=launch.key_block, starts=starts,
    )  # fmt: skip
    expected = int((visible & ~kept).sum())
    assert (left_out > 0) == (expected > 0) or device == "cuda"
    if counted:
        assert left_out == expected
        assert expected == 0 or float(dropped.max()) > 0


CERTIFIED = [
    (Case(queries=256, keys=256), 1e-2, 12.0, True),
    (Case(heads=4, key_heads=2, queries=64, keys=320), 1e-1, 12.0, True),
    (Case(queries=256, keys=256), 1e-2, 0.0, True),
    (Case(queries=131, keys=200, launch=WIDE), 1e-2, 12.0, False),
    (Case(queries=150, keys=150, launch=DESCRIBED), 1e-3, 13.0, False),
    (Case(batch=2, queries=200, keys=200, starts=(0, 70)), 1e-2, 12.0, False),
    (Case(batch=2, queries=90, keys=90, starts=(80, 3), launch=DESCRIBED), 1e-2, 12.0, False),
]


@needs_triton
@pytest.mark.parametrize(("case", "eps", "sink", "counted"), CERTIFIED, ids=str)
def test_what_is_left_out_is_certified_in_the_interpreter(
    case: Case, eps: float, sink: float, counted: bool, interpreted: Callable[..., None]
) -> None:
    interpreted(check_certified, case, eps, sink, counted)


@needs_triton
def test_a_share_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from inference_pio.kernels.triton import support
    from inference_pio.kernels.triton.flash import flash_attention

    monkeypatch.setattr(support, "_device", lambda device: None)
    with pytest.raises(InvalidSetting, match="between 0 and 1"):
        flash_attention(*Case().tensors("cpu"), certified=1.5)


SPARSE = [
    (Case(batch=2, heads=4, key_heads=2, queries=100, keys=100), 32, 0.5),
    (Case(queries=100, keys=170, launch=WIDE), 64, 0.5),
    (Case(queries=100, keys=170, launch=WIDE), 32, 0.3),
    (Case(queries=70, keys=131, causal=False), 64, 0.4),
    (Case(queries=100, keys=100), 32, 0.0),
    (Case(batch=2, queries=100, keys=100, starts=(40, 0), launch=DESCRIBED), 32, 0.6),
    (Case(queries=131, keys=131), 32, 1.1),
]


@needs_triton
@pytest.mark.parametrize(("case", "key_block", "density"), SPARSE, ids=str)
def test_lists_of_blocks_are_exact_in_the_interpreter(
    case: Case, key_block: int, density: float, interpreted: Callable[..., None]
) -> None:
    interpreted(check_sparse, case, key_block, density)


@needs_triton
def test_lists_for_other_blocks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from inference_pio.kernels.triton import support
    from inference_pio.kernels.triton.flash import flash_attention

    monkeypatch.setattr(support, "_device", lambda device: None)
    tensors = Case().tensors("cpu")
    lists = BlockList.from_kept(torch.ones(1, 2, 1, 1, dtype=torch.bool), 64, 64)
    with pytest.raises(InvalidSetting, match="make them for 32 queries"):
        flash_attention(*tensors, lists=lists, launch=SMALL)


def _compile(compiler: Compiler, capability: int, case: Case, kind: str) -> None:
    from inference_pio.kernels.triton.flash import flash_attention, flash_kernel

    compiler.for_machine(capability, flash_kernel)
    launch = choose_flash_launch(
        MACHINES[capability], case.width, padded=kind == "padded", certified=kind.startswith("certified")
    )
    options = {"starts": int32((1,), "cpu"), "ends": int32((37,), "cpu")} if kind == "padded" else {}
    if kind.startswith("certified"):
        options = {"certified": 1e-2, "skipped": int32((0,), "cpu")}  # type: ignore[dict-item]
    if kind == "certified padded":
        options["starts"] = int32((1,), "cpu")
    if kind == "listed":
        kept = torch.ones(1, 8, 1, 1, dtype=torch.bool)
        options = {"lists": BlockList.from_kept(kept, launch.query_block, 128)}  # type: ignore[dict-item]
    flash_attention(*case.tensors("cpu"), launch=launch, **options)  # type: ignore[arg-type]
    (code,) = compiler.found
    code.assert_it_fits(MACHINES[capability])
    if capability == 90:
        assert code.counts["HGMMA"], code
        assert code.counts["UTMALDG"], code
        assert not code.counts["LDGSTS 128"], code
    else:
        assert code.counts["HMMA"], code
        ahead = code.counts["LDGSTS 128"]
        if kind.startswith("certified"):  # values that may be left out are read when they are wanted
            ahead += code.counts["LDG 128"]
        assert ahead >= 16, code
        assert kind == "listed" or not code.counts["LDGSTS"], code  # a list's numbers are 4 bytes each
    assert not code.counts["LDG U16"], code
    assert not code.counts["STG U16"], code
    assert code.registers <= (launch.registers or 255), code


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("kind", ["plain", "padded", "listed", "certified"])
def test_it_compiles_to_wide_loads_and_matrix_products_without_spilling(
    capability: int, kind: str, compiler: Compiler
) -> None:
    _compile(compiler, capability, Case(heads=8, key_heads=2, width=128), kind)


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("kind", ["plain", "padded", "listed", "certified", "certified padded"])
@pytest.mark.parametrize("width", [64, 128, 256])
@pytest.mark.parametrize("causal", [True, False])
def test_so_does_every_width(capability: int, kind: str, width: int, causal: bool, compiler: Compiler) -> None:
    _compile(compiler, capability, Case(heads=8, key_heads=2, width=width, causal=causal), kind)


GPU_CASES = [
    {"queries": 1000, "keys": 1000},
    {"queries": 1000, "keys": 1000, "dtype": torch.float16},
    {"queries": 5, "keys": 777},
    {"queries": 300, "keys": 1111, "causal": False},
    {"batch": 3, "queries": 700, "keys": 700, "starts": (0, 130, 699)},
    {"batch": 2, "queries": 513, "keys": 600, "starts": (65, 0), "ends": (600, 90)},
    {"queries": 4096, "keys": 4096, "key_heads": 8},
]


@pytest.mark.gpu
@pytest.mark.parametrize("width", [64, 128, 256])
@pytest.mark.parametrize("case", GPU_CASES, ids=str)
def test_gpu_it_is_exact_up_to_rounding(case: dict[str, Any], width: int) -> None:
    for launch in (own_launch(width, padded="starts" in case), choose_flash_launch(AMPERE, width)):
        check_dense(Case(**{"heads": 8, "key_heads": 2, "width": width, "launch": launch, **case}), "cuda")


def own_launch(width: int, *, padded: bool = False) -> FlashLaunch:
    """This kernel's on this GPU: without one, another kernel may serve (`test_flash_roles`)."""
    return choose_flash_launch(device_limits(torch.device("cuda")), width, padded=padded)


def check_rows(case: Case, key_block: int, density: float | None, device: str = "cpu") -> None:
    """Every element is written; of a text too long for whole score matrices some rows are held to the definition."""
    from inference_pio.kernels.triton.flash import flash_attention

    query, key, value = case.tensors(device)
    launch = case.launch or choose_flash_launch(device_limits(query.device), case.width)
    places = torch.arange(case.keys, device=device)
    lists, kept = None, None
    if density is not None:
        visible = places[::key_block] < (places[:: launch.query_block, None] + launch.query_block)
        kept = torch.rand(1, case.heads, *visible.shape, device=device) < density
        kept = (kept | (places[::key_block] == 0)) & visible
        lists = BlockList.from_kept(kept, launch.query_block, key_block)
    out = torch.full_like(query, float("nan"), dtype=torch.float32 if device == "cpu" else case.dtype)
    flash_attention(query, key, value, lists=lists, out=out, launch=case.launch)
    assert bool(out.isfinite().all())
    for first in (0, launch.query_block - 1, case.queries // 2 - 1, case.queries - 32):
        rows = places[first : first + 32]
        seen = (places <= rows[:, None])[None, None]
        if kept is not None:
            seen = seen & kept[:, :, rows // launch.query_block].repeat_interleave(key_block, 3)
        assert_close(out[:, :, rows], naive_attention(query[:, :, rows], key, value, seen), device)


@needs_triton
@pytest.mark.parametrize("density", [None, 0.3])
def test_long_texts_are_exact_in_the_interpreter(density: float | None, interpreted: Callable[..., None]) -> None:
    interpreted(check_rows, Case(heads=4, key_heads=2, queries=256, keys=256, launch=WIDE), 64, density)


@pytest.mark.gpu
@pytest.mark.parametrize("key_heads", [4, 8])
@pytest.mark.parametrize("density", [None, 0.125])
def test_gpu_long_texts_are_exact_up_to_rounding(key_heads: int, density: float | None) -> None:
    case = Case(heads=32, key_heads=key_heads, queries=16384, keys=16384, width=128, launch=own_launch(128))
    check_rows(case, 128, density, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("width", [64, 128, 256])
def test_gpu_what_is_left_out_is_certified(width: int) -> None:
    for case in (Case(queries=4096, keys=4096), Case(batch=2, queries=700, keys=900, starts=(0, 300))):
        case = dataclasses.replace(case, heads=8, key_heads=2, width=width, launch=None)
        check_certified(case, 1e-2, 1.5 * width**0.5, False, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("width", [64, 128, 256])
@pytest.mark.parametrize(("queries", "keys", "key_block"), [(1000, 1000, 128), (700, 1500, 128), (1024, 1024, 64)])
@pytest.mark.parametrize("causal", [True, False])
def test_gpu_lists_of_blocks_are_exact_up_to_rounding(
    width: int, queries: int, keys: int, key_block: int, causal: bool
) -> None:
    case = Case(batch=2, heads=8, key_heads=2, queries=queries, keys=keys, width=width, causal=causal)
    check_sparse(dataclasses.replace(case, launch=own_launch(width)), key_block, 0.4, "cuda")


@pytest.mark.gpu
def test_gpu_keys_that_the_copy_engine_cannot_address_are_served_all_the_same() -> None:
    from inference_pio.kernels.triton.flash import flash_attention

    query, key, value = Case(queries=200, keys=200, launch=None).tensors("cuda")
    shared = key.expand(2, -1, -1, -1)  # a stride of zero
    out = flash_attention(query.expand(2, -1, -1, -1), shared, value.expand(2, -1, -1, -1))
    assert_close(out[1:], naive_attention(query, key, value, causal=True), "cuda")
