"""Attention over codes is attention over the numbers that they tell, and over the last tokens as they are."""

from __future__ import annotations

import pytest
import torch

from inference_pio.kernels.coded_decode import CodedCacheView, choose_coded_backend, coded_decode, naive_coded_decode
from inference_pio.kernels.decode_attention import naive_decode_attention
from inference_pio.kernels.page_codes import PageForm, code_pages, page_values

KEYS = PageForm(8)


def cached(
    pages: int, recent: int, *, batch: int = 2, key_heads: int = 2, width: int = 64, room: int = 5,
    values: PageForm | None = None, dtype: torch.dtype = torch.bfloat16, seed: int = 0,
) -> tuple[CodedCacheView, torch.Tensor, torch.Tensor]:  # fmt: skip
    """A cache with room for more than it holds, and its keys and values [B, tokens, key heads, D] as numbers."""
    chance = torch.Generator().manual_seed(seed)
    value_form = values or PageForm(8, min(width, 64))
    numbers = [torch.randn(batch, key_heads, room, 64, width, generator=chance) for _ in range(2)]
    numbers[0][..., 3] -= 9  # a channel that stands out
    last = [torch.randn(batch, key_heads, 128, width, generator=chance).to(dtype) for _ in range(2)]
    parts = [code_pages(part, form) for part, form in zip(numbers, (KEYS, value_form), strict=True)]
    held = torch.tensor([pages], dtype=torch.int32)
    view = CodedCacheView(parts[0], parts[1], KEYS, value_form, last[0], last[1], held)
    whole = [
        torch.cat([page_values(part, form, torch.float32)[:, :, :pages].flatten(2, 3), one[:, :, :recent].float()], 2)
        for part, form, one in zip(parts, (KEYS, value_form), last, strict=True)
    ]
    return view, whole[0].transpose(1, 2), whole[1].transpose(1, 2)


@pytest.mark.parametrize(("pages", "recent"), [(0, 1), (0, 127), (1, 64), (5, 100), (3, 0)])
@pytest.mark.parametrize("starts", [None, (70, 0)])
def test_the_definition_is_attention_over_the_numbers(pages: int, recent: int, starts: tuple[int, int] | None) -> None:
    view, keys, values = cached(pages, recent)
    query = torch.randn(2, 6, 64, generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([64 * pages + recent], dtype=torch.int32)
    first = None if starts is None else torch.tensor(starts, dtype=torch.int32)
    wanted = naive_decode_attention(query, keys, values, lengths, first, scale=0.2)
    torch.testing.assert_close(naive_coded_decode(query, view, lengths, first, scale=0.2), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("values", [PageForm(8, 16), PageForm(4, 32), PageForm(8, 32, floating=True)], ids=str)
def test_without_a_kernel_numbers_are_made_of_any_codes(dtype: torch.dtype, values: PageForm) -> None:
    view, *_ = cached(3, 77, values=values, dtype=dtype)
    query = torch.randn(2, 4, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    for lengths in (torch.tensor([269], dtype=torch.int32), torch.tensor([269, 100], dtype=torch.int32)):
        assert choose_coded_backend(query, view, lengths) == "torch"
        found = coded_decode(query, view, lengths)
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(
            found.float(), naive_coded_decode(query, view, lengths), rtol=tolerance, atol=tolerance
        )
