"""Packed rows: each sees itself alone, one call serves all of one length, and bounds are read once."""

from __future__ import annotations

import pytest
import torch

from inference_pio.kernels.attention import naive_attention
from inference_pio.kernels.packed_attention import (
    lengths_of,
    naive_packed_attention,
    packed_attention,
    packed_varlen_attention,
)

LENGTHS = {"one": [5], "equal": [4, 4, 4], "mixed": [3, 7, 3, 1, 7, 3], "runs": [2, 2, 5, 5]}


def _tensors(lengths: list[int], device: str = "cpu", dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(len(lengths))
    return [
        torch.randn(sum(lengths), 2, 64, generator=generator).to(device, dtype).transpose(0, 1)[None] for _ in range(3)
    ]


@pytest.mark.parametrize("name", LENGTHS)
def test_rows_see_themselves_alone_as_under_a_block_diagonal_mask(name: str) -> None:
    lengths = LENGTHS[name]
    query, key, value = _tensors(lengths)
    owner = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    expected = naive_attention(query, key, value, (owner[:, None] == owner)[None, None], scale=0.2)[0].transpose(0, 1)
    torch.testing.assert_close(naive_packed_attention(query, key, value, lengths, 0.2), expected)


@pytest.mark.parametrize("name", LENGTHS)
def test_one_call_serves_all_rows_of_one_length(name: str) -> None:
    lengths, calls = LENGTHS[name], []

    def attend(*rows: torch.Tensor) -> torch.Tensor:
        calls.append(tuple(rows[0].shape))
        return naive_attention(*rows, scale=0.2)

    got = packed_attention(attend, *_tensors(lengths), lengths)
    torch.testing.assert_close(got, naive_packed_attention(*_tensors(lengths), lengths, 0.2))
    assert calls == [(lengths.count(length), 2, length, 64) for length in dict.fromkeys(lengths)]


def test_rows_of_one_length_side_by_side_are_not_copied() -> None:
    query, key, value = _tensors([4, 4, 4])
    seen: list[int] = []

    def attend(rows: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        seen.append(rows.data_ptr())
        return naive_attention(rows, *others)

    packed_attention(attend, query, key, value, [4, 4, 4])
    assert seen == [query.data_ptr()]


def test_bounds_are_read_once_and_again_when_they_change() -> None:
    bounds = torch.tensor([0, 4, 6])
    first = lengths_of(bounds)
    assert lengths_of(bounds) is first
    bounds += torch.tensor([0, 0, 1])
    assert lengths_of(bounds) == [4, 3]


@pytest.mark.gpu
@pytest.mark.parametrize("name", LENGTHS)
def test_gpu_torchs_flash_operator_serves_all_rows_in_one_call(name: str) -> None:
    lengths = LENGTHS[name]
    query, key, value = _tensors(lengths, "cuda", torch.bfloat16)
    bounds = torch.tensor([0, *lengths], device="cuda").cumsum(0, dtype=torch.int32)
    got = packed_varlen_attention(query, key, value, bounds, max(lengths), 0.2).float()
    expected = naive_packed_attention(query, key, value, lengths, 0.2)
    torch.testing.assert_close(got, expected, rtol=2e-2, atol=2e-2)
