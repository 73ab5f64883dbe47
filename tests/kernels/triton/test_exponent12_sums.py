"""Which listed weights are a program's own, in which steps, and where they are put."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from inference_pio.compat import has_triton
from inference_pio.kernels.exponent12 import pack

pytestmark = pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")


def check_steps() -> None:
    from tests.kernels.triton.ordered import steps_kernel

    weights = torch.ones(40, 16 * 40).bfloat16()
    weights[0, 1] = weights[17, 15] = weights[17, 40] = weights[18, 639] = weights[31, 0] = 2.0**-30
    weights[20, :100] = 0.0  # more than are read at a time
    packed, out = pack(weights), torch.empty(3, dtype=torch.int32)
    assert packed.places.tolist()[:1] == [1]
    for first, rows, wanted in (
        (0, 1, (0, 1, 1)), (1, 1, (0, 0, 0)), (16, 2, (1, 3, 0b101)), (18, 1, (3, 4, -(2**31))),
        (20, 2, (4, 104, 0b1111111)), (28, 4, (104, 105, 1)), (32, 8, (105, 105, 0)),
    ):  # fmt: skip
        steps_kernel[(1,)](
            packed.listed_rows, packed.starts, packed.places, out, first, 640, ROW_COUNT=rows, COLUMN_COUNT=16
        )
        assert tuple(out.tolist()) == wanted, (first, rows)


def check_placed() -> None:
    from tests.kernels.triton.ordered import placed_kernel

    chance = torch.Generator().manual_seed(0)
    weights = torch.randn(8, 64, generator=chance).bfloat16()
    for column in range(64):
        weights[column % 8, column] = 2.0**-40 * (column + 1)
    packed, out = pack(weights), torch.empty(2, 32, dtype=torch.float32)
    for first, start in ((0, 0), (2, 32), (6, 32)):
        placed_kernel[(1,)](
            packed.codes.view(torch.int32), packed.indices.view(torch.int32), packed.lowest, packed.places,
            packed.values.view(torch.int16), out, len(packed.places), first, start, 64,
        )  # fmt: skip
        assert torch.equal(out, weights[first : first + 2, start : start + 32].float()), (first, start)


def test_own_listed_weights_are_found_with_their_steps(interpreted: Callable[..., None]) -> None:
    interpreted(check_steps)


def test_listed_weights_are_put_where_they_belong(interpreted: Callable[..., None]) -> None:
    interpreted(check_placed)
