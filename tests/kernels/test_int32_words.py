"""Words hold their codes lowest bits first, signed or not, filled or not."""

from __future__ import annotations

import pytest
import torch

from inference_pio.kernels.int32_words import naive_pack_words, pack_words


@pytest.mark.parametrize("columns", [1, 3, 8, 31, 64])
@pytest.mark.parametrize("bits", [4, 8])
def test_words_are_those_of_the_definition(bits: int, columns: int) -> None:
    half = 1 << bits - 1
    chance = torch.Generator().manual_seed(columns)
    codes = torch.randint(-half, half, (5, columns), generator=chance).to(torch.int8)
    words = pack_words(codes, bits)
    assert words.dtype is torch.int32
    assert words.tolist() == [naive_pack_words(row, bits) for row in codes.tolist()]


def test_the_extremes_fill_a_word() -> None:
    assert pack_words(torch.full((1, 8), -8, dtype=torch.int8), 4).tolist() == [[0]]
    assert pack_words(torch.full((1, 8), 7, dtype=torch.int8), 4).tolist() == [[-1]]
    assert pack_words(torch.tensor([[-128, 127, -128, -128]], dtype=torch.int8), 8).tolist() == [[0xFF00]]


def test_codes_that_lie_apart_are_packed_as_they_are_read() -> None:
    codes = torch.arange(-8, 8, dtype=torch.int8).view(2, 8)
    assert pack_words(codes.t(), 4).tolist() == [naive_pack_words(row, 4) for row in codes.t().tolist()]
