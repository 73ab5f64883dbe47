"""The kernel that weighs blocks of keys for single queries: against its definition, interpreted, compiled, on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from inference_pio.compat import has_triton
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.row_mass import naive_row_mass
from inference_pio.kernels.triton.launch import MassLaunch, choose_mass_launch
from tests.kernels.triton.compiling import MACHINES, Compiler

needs_triton = pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")


@dataclass(frozen=True)
class Case:
    rows: int = 7
    keys: int = 131
    block: int = 64
    heads: int = 4
    key_heads: int = 2
    width: int = 64
    batch: int = 1
    starts: tuple[int, ...] | None = None
    splits: int | None = 3
    dtype: torch.dtype = torch.bfloat16


def check(case: Case, device: str = "cpu") -> None:
    from inference_pio.kernels.triton.row_mass import row_mass, row_weights

    chance = torch.Generator().manual_seed(case.keys)
    positions = torch.randint(0, case.keys, (case.rows,), generator=chance).to(device)
    query = torch.randn(case.batch, case.rows, case.heads, case.width, generator=chance).transpose(1, 2)
    key = torch.randn(case.batch, case.key_heads, case.keys, case.width, generator=chance)
    query, key = (3 * query).to(device, case.dtype), key.to(device, case.dtype)
    starts = None if case.starts is None else torch.tensor(case.starts, dtype=torch.int32, device=device)
    expected = naive_row_mass(query, positions, key, block=case.block, scale=0.1, starts=starts)
    spoilt = key.clone()
    for row, start in enumerate(case.starts or ()):
        spoilt[row, :, :start] = float("nan")
    launch = None if case.splits is None else MassLaunch(16, case.splits, 4, 2)
    options = {"block": case.block, "scale": 0.1, "starts": starts, "launch": launch}
    got = row_mass(query, positions, spoilt, **options)
    tolerance = {"rtol": 1e-4, "atol": 1e-6} if device == "cpu" else {"rtol": 2e-3, "atol": 1e-5}
    torch.testing.assert_close(got, expected, **tolerance)
    weights = row_weights(query, positions, spoilt, **options)
    assert torch.equal(weights == float("-inf"), expected == 0)
    scores = query.float() @ key.float().repeat_interleave(case.heads // case.key_heads, 1).mT * 0.1
    places = torch.arange(case.keys, device=device)
    seen = (places <= positions[:, None])[None, None]
    if starts is not None:
        seen = seen & (places >= starts[:, None])[:, None, None]
    total = scores.masked_fill(~seen, float("-inf")).logsumexp(-1)
    torch.testing.assert_close(torch.logsumexp(weights * 0.6931471805599453, -1), total, rtol=1e-4, atol=1e-3)


CASES = [
    Case(),
    Case(rows=1, keys=1),
    Case(rows=17, keys=257, block=128, splits=1),
    Case(rows=33, keys=70, block=16, splits=9),
    Case(rows=5, keys=200, width=128, heads=3, key_heads=1, dtype=torch.float16),
    Case(rows=20, keys=150, batch=2, starts=(0, 66), splits=2),
    Case(rows=9, keys=100, batch=2, starts=(99, 64)),
    Case(rows=130, keys=190, splits=None),
]


@needs_triton
@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_is_exact_in_the_interpreter(case: Case, interpreted: Callable[..., None]) -> None:
    interpreted(check, case)


@needs_triton
def test_blocks_it_does_not_know_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from inference_pio.kernels.triton import support
    from inference_pio.kernels.triton.row_mass import row_weights

    monkeypatch.setattr(support, "_device", lambda device: None)
    query = torch.zeros(1, 2, 3, 64, dtype=torch.bfloat16)
    with pytest.raises(InvalidSetting, match="blocks of 48 keys"):
        row_weights(query, torch.arange(3), query, block=48)


def _compile(compiler: Compiler, capability: int, width: int, rows: int, padded: bool) -> None:
    from inference_pio.kernels.triton.row_mass import row_weights, weights_kernel

    compiler.for_machine(capability, weights_kernel)
    query, key = torch.zeros(1, 8, rows, width), torch.zeros(1, 2, 4096, width)
    starts = torch.zeros(1, dtype=torch.int32) if padded else None
    row_weights(
        query.bfloat16(), torch.arange(rows), key.bfloat16(), block=64, starts=starts,
        launch=choose_mass_launch(MACHINES[capability], 32, rows, width, 512),
    )  # fmt: skip
    (code,) = compiler.found
    code.assert_it_fits(MACHINES[capability])
    assert code.counts["LDGSTS 128"] >= 4, code
    assert not code.counts["LDGSTS"], code
    assert not code.counts["LDG U16"], code
    assert code.counts["HGMMA" if capability == 90 and rows > 16 else "HMMA"], code


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("rows", [1, 128])
def test_it_compiles_to_wide_loads_and_matrix_products_without_spilling(
    capability: int, rows: int, compiler: Compiler
) -> None:
    _compile(compiler, capability, 128, rows, padded=False)


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("width", [64, 256])
@pytest.mark.parametrize("rows", [1, 64, 256])
def test_so_does_every_width(capability: int, width: int, rows: int, compiler: Compiler) -> None:
    _compile(compiler, capability, width, rows, padded=True)


@pytest.mark.gpu
@pytest.mark.parametrize("width", [64, 128, 256])
@pytest.mark.parametrize("rows", [1, 128, 200])
def test_gpu_it_is_exact_up_to_rounding(width: int, rows: int) -> None:
    for starts in (None, (0, 1000)):
        check(Case(rows, 5000, heads=8, batch=2, width=width, starts=starts, splits=None), "cuda")
