"""Attention inside each of many rows that are packed one behind another: pictures of different sizes in one tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch

from inference_pio.compat import varlen_attention
from inference_pio.kernels.attention import naive_attention

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
_LENGTHS = "_inference_pio_lengths"


def naive_packed_attention(query, key, value, lengths: Sequence[int], scale: float | None = None) -> torch.Tensor:
    """`[1, H, T, D]` whose rows of `lengths` lie one behind another, each seeing itself alone; float32 [T, H, D]."""
    parts = [tensor.split(list(lengths), 2) for tensor in (query, key, value)]
    return torch.cat([naive_attention(*part, scale=scale)[0].transpose(0, 1) for part in zip(*parts, strict=True)])


def packed_attention(
    attend: Attend, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: Sequence[int]
) -> torch.Tensor:
    """The same through `attend`, which takes [rows, H, S, D] and is called once for each length there is: [T, H, D]."""
    groups: dict[int, list[int]] = {}
    for start, length in zip(accumulate(lengths, initial=0), lengths, strict=False):
        groups.setdefault(length, []).append(start)
    out = query.new_empty(query.shape[2], query.shape[1], value.shape[-1])
    for length, starts in groups.items():
        rows = [_rows(tensor, starts, length) for tensor in (query, key, value)]
        found = attend(*rows).transpose(1, 2)
        if _side_by_side(starts, length):
            out[starts[0] : starts[-1] + length] = found.flatten(0, 1)
            continue
        for start, one in zip(starts, found, strict=True):
            out[start : start + length] = one
    return out


def packed_varlen_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: torch.Tensor, longest: int,
    scale: float | None = None,
) -> torch.Tensor:  # fmt: skip
    """The same through torch's flash operator for CUDA, in one call, by the rows' `bounds` int32 on the device."""
    packed = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    return varlen_attention(*packed, bounds, longest, scale)


def lengths_of(bounds: torch.Tensor) -> list[int]:
    """The lengths between the bounds of packed rows. The device is read once for all layers that are handed them.

    >>> lengths_of(torch.tensor([0, 4, 6]))
    [4, 2]
    """
    version = None if bounds.is_inference() else bounds._version
    kept = getattr(bounds, _LENGTHS, None)
    if kept is None or kept[0] != version:
        kept = (version, bounds.diff().tolist())
        setattr(bounds, _LENGTHS, kept)
    return kept[1]


def _side_by_side(starts: list[int], length: int) -> bool:
    return starts[-1] - starts[0] == length * (len(starts) - 1)


def _rows(tensor: torch.Tensor, starts: list[int], length: int) -> torch.Tensor:
    """Rows of one length as a batch [rows, H, S, D]: a view where they lie side by side."""
    if _side_by_side(starts, length):
        whole = tensor[0, :, starts[0] : starts[-1] + length]
        return whole.unflatten(1, (len(starts), length)).transpose(0, 1)
    return torch.stack([tensor[0, :, start : start + length] for start in starts])
