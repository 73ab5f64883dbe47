"""Words laid out for matrix units: each code meets its x, whatever the order, and is its number over what it says."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from inference_pio.compat import has_triton
from inference_pio.kernels.int4 import pack_codes, words_of

needs_triton = pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")


def check_laid(groups: int, members: int, codes: int) -> None:
    """The plain product of every row with every member; whole numbers, and powers of two: nothing is rounded."""
    from tests.kernels.triton.held_tile_kernel import laid

    torch.manual_seed(groups + members + codes)
    held = torch.randint(0, 16 if codes == 8 else 256, (groups * 16, 16 * codes), dtype=torch.uint8)
    if codes == 8:
        words, numbers = words_of(pack_codes(held)), held.double() + 128
    else:
        held[held & 0x7F == 0x7F] = 0  # the two that are no numbers
        words, numbers = held.view(torch.int32), held.view(torch.float8_e4m3fn).double() * 2.0**-120
    words, numbers = words.reshape(groups, 16, 16), numbers.reshape(groups, 16, 16 * codes)
    x = torch.randint(-9, 10, (groups, members, 16 * codes)).float()
    tile, narrow = laid(words, x, codes)
    found, wanted = tile.double() @ narrow.double(), numbers @ x.double().mT
    assert torch.equal(found, wanted.repeat(1, 1, 8 // members))
    assert torch.equal(tile.double().sort(-1).values, numbers.sort(-1).values)


@needs_triton
@pytest.mark.parametrize("codes", [8, 4], ids=["nibbles", "fp8"])
@pytest.mark.parametrize(("groups", "members"), [(1, 1), (2, 4), (4, 8)])
def test_every_code_meets_its_x(groups: int, members: int, codes: int, interpreted: Callable[..., None]) -> None:
    interpreted(check_laid, groups, members, codes)
