"""What stands around sums: a norm, a scale, a bias, in this order, and the gate."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from inference_pio.compat import has_triton

pytestmark = pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")


def check() -> None:
    from tests.kernels.triton.ordered import ends_kernel

    chance = torch.Generator().manual_seed(0)
    sums, up, normal, scale, bias = torch.randn(5, 8, generator=chance)
    out = torch.empty(2, 8)
    ends_kernel[(1,)](sums, up, normal, scale, bias, out)
    torch.testing.assert_close(out[0], sums * normal * scale + bias)
    torch.testing.assert_close(out[1], torch.nn.functional.silu(sums) * up)


def test_ends_are_what_they_say(interpreted: Callable[..., None]) -> None:
    interpreted(check)
