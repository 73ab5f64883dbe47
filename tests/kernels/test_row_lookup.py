"""Rows that are looked up are the rows of the table, whatever the codes, and nothing else is read."""

from __future__ import annotations

import pytest
import torch

from inference_pio.kernels.fp8 import quantize_rows_fp8
from inference_pio.kernels.int8 import quantize_rows
from inference_pio.kernels.row_lookup import naive_row_lookup, row_lookup
from tests.formats.help import seeded

MAKE = {"int8": quantize_rows, "fp8": quantize_rows_fp8}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", list(MAKE))
@pytest.mark.parametrize(("tokens", "width", "shape"), [(131, 64, (2, 9)), (7, 33, (5,)), (3, 1, ()), (4, 8, (0, 2))])
def test_rows_are_those_of_the_whole_table(
    dtype: torch.dtype, kind: str, tokens: int, width: int, shape: tuple[int, ...]
) -> None:
    codes, scale = MAKE[kind](seeded(tokens, width))
    ids = torch.randint(tokens, shape, generator=torch.Generator().manual_seed(1))
    found = row_lookup(ids, codes, scale, dtype)
    assert found.dtype is dtype
    assert torch.equal(found, naive_row_lookup(ids, codes, scale, dtype))


def test_an_id_behind_the_last_is_refused_as_torch_refuses_it() -> None:
    codes, scale = quantize_rows(seeded(4, 8))
    for wrong in (-1, 4):
        with pytest.raises(IndexError):
            row_lookup(torch.tensor([wrong]), codes, scale, torch.float32)
