"""Attention over a cache is attention over its true part alone."""

from __future__ import annotations

import pytest
import torch

from inference_pio.kernels.attention import naive_attention
from inference_pio.kernels.decode_attention import (
    choose_decode_backend,
    decode_attention,
    gather_pages,
    naive_decode_attention,
)
from inference_pio.kernels.page_list import PageList


def tensors() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(2, 4, 8, generator=generator),
        torch.randn(2, 10, 2, 8, generator=generator),
        torch.randn(2, 10, 2, 8, generator=generator),
    )


def test_each_row_sees_its_own_tokens_alone() -> None:
    query, key, value = tensors()
    out = naive_decode_attention(query, key, value, torch.tensor([7, 10]), torch.tensor([2, 0]))
    for row, (start, end) in enumerate(((2, 7), (0, 10))):
        seen = (tensor[row : row + 1, start:end].transpose(1, 2) for tensor in (key, value))
        torch.testing.assert_close(out[row], naive_attention(query[row : row + 1, :, None], *seen)[0, :, 0])


def test_what_lies_behind_the_length_may_be_anything() -> None:
    query, key, value = tensors()
    clean = naive_decode_attention(query, key, value, torch.tensor([7]))
    key[:, 7:], value[:, 7:] = float("nan"), float("nan")
    assert torch.equal(naive_decode_attention(query, key, value, torch.tensor([7])), clean)


def test_pages_left_out_are_not_seen_and_nothing_seen_gives_zeros() -> None:
    query, key, value = tensors()
    kept = torch.zeros(2, 2, 3, dtype=torch.bool)
    kept[0, 1, 1] = True
    out = naive_decode_attention(query, key, value, torch.tensor([7]), pages=kept, page_size=4)
    assert not out[1].any()
    assert not out[0, :2].any()
    scores = torch.softmax(key[0, 4:7, 1] @ query[0, 3] / 8**0.5, -1)
    torch.testing.assert_close(out[0, 3], scores @ value[0, 4:7, 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("starts", [None, (2, 0), (6, 0)])
def test_without_a_kernel_the_whole_room_is_read_and_what_is_not_held_hidden(
    dtype: torch.dtype, key_heads: int, starts: tuple[int, int] | None
) -> None:
    query, key, value = (tensor.to(dtype) for tensor in tensors())
    key, value = (tensor.repeat(1, 1, 2, 1)[:, :, :key_heads] for tensor in (key, value))
    first = None if starts is None else torch.tensor(starts, dtype=torch.int32)
    for held in (torch.tensor([7], dtype=torch.int32), torch.tensor([7, 10], dtype=torch.int32)):
        assert choose_decode_backend(query, key, value, held, first) == "torch"
        out = decode_attention(query, key, value, held, first, scale=0.3)
        expected = naive_decode_attention(query.float(), key.float(), value.float(), held, first, scale=0.3)
        tolerance = 1e-6 if dtype == torch.float32 else 1e-2
        torch.testing.assert_close(out.float(), expected, rtol=tolerance, atol=tolerance)


def test_listed_pages_alone_are_read() -> None:
    chance = torch.Generator().manual_seed(1)
    query, (key, value) = torch.randn(2, 4, 8, generator=chance), torch.randn(2, 2, 300, 2, 8, generator=chance)
    counts = torch.tensor([[2, 5], [1, 3]], dtype=torch.int32)
    indices = torch.tensor([[[0, 3, 0, 0, 0], [0, 1, 2, 3, 4]], [[4, 1, 1, 1, 1], [1, 2, 4, 0, 0]]], dtype=torch.int32)
    lengths = torch.tensor([290], dtype=torch.int32)
    pages = PageList(counts, indices)
    expected = naive_decode_attention(query, key, value, lengths, pages=pages.kept(5))
    torch.testing.assert_close(decode_attention(query, key, value, lengths, pages=pages), expected)


def test_pages_are_gathered_in_the_tables_order() -> None:
    pool = torch.randn(5, 4, 2, 8)
    table = torch.tensor([[3, 0], [1, 4]])
    assert torch.equal(gather_pages(pool, table)[1, 4:], pool[4])
