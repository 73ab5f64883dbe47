"""A few rows times codes by our kernel: the definition of each kind of codes, in the interpreter and on a GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from inference_pio.compat import has_triton
from inference_pio.kernels.few_coded_rows import few_coded_rows, runs_few_coded_rows
from inference_pio.kernels.fp8 import fp8_linear, naive_fp8_linear, quantize_rows_fp8
from inference_pio.kernels.int4 import int4_linear, naive_int4_linear, quantize_groups, unpack_codes, words_of
from inference_pio.kernels.int8 import int8_linear, naive_int8_linear, quantize_rows
from tests.kernels.triton.conftest import interpreted

__all__ = ["interpreted"]
needs_triton = pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")
KINDS = ["int8", "fp8", "int4"]


def seeded(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def both(kind: str, rows: int, device: str, whole: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The product by our kernel (`whole`: as the format multiplies) and from the definition."""
    x, weight = seeded(2, rows, 128)[:1].bfloat16(), seeded(48, 128, seed=1)
    if kind == "int4":
        codes, scale = quantize_groups(weight, 32)
        wanted = naive_int4_linear(x, unpack_codes(codes), scale)
        codes = words_of(codes)
    else:
        quantize, naive = {"int8": (quantize_rows, naive_int8_linear), "fp8": (quantize_rows_fp8, naive_fp8_linear)}[
            kind
        ]
        codes, scale = quantize(weight)
        wanted = naive(x, codes, scale)
    product = {"int8": int8_linear, "fp8": fp8_linear, "int4": int4_linear}[kind] if whole else few_coded_rows
    found = product(x.to(device), codes.to(device), scale.to(device))
    assert found is not None
    return found, wanted.to(device)


def check(kind: str, rows: int, device: str = "cpu", whole: bool = False) -> None:
    found, wanted = both(kind, rows, device, whole)
    assert (found.shape, found.dtype) == (wanted.shape, torch.bfloat16)
    torch.testing.assert_close(found, wanted, rtol=2e-2, atol=2e-2 * wanted.abs().max().item())


@needs_triton
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 3])
def test_products_are_their_definition_in_the_interpreter(
    kind: str, rows: int, interpreted: Callable[..., None]
) -> None:
    interpreted(check, kind, rows)


@needs_triton
@pytest.mark.parametrize("rows", [0, 9])
def test_no_rows_and_many_rows_are_left_to_others(rows: int) -> None:
    assert few_coded_rows(seeded(rows, 64), *quantize_rows(seeded(8, 64))) is None


def test_a_cpu_has_its_own_ways() -> None:
    assert not runs_few_coded_rows(torch.device("cpu"), torch.bfloat16)
    assert not runs_few_coded_rows(torch.device("meta"), torch.bfloat16)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 8, 9, 100])
def test_gpu_formats_multiply_by_it(kind: str, rows: int) -> None:
    check(kind, rows, "cuda", whole=True)
