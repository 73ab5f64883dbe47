"""Attention of one new token a row over pages of codes and the last tokens as they are; the plain truth first."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from inference_pio.kernels.decode_attention import decode_attention, naive_decode_attention
from inference_pio.kernels.page_codes import PageForm, Parts, naive_page_values, page_values
from inference_pio.kernels.triton.attention_support import supports_coded_decode
from inference_pio.kernels.triton.launch import PAGE

TRITON, TORCH = "triton", "torch"


@dataclass(frozen=True)
class CodedCacheView:
    """What a kernel reads of one layer: `keys` and `values` as the parts of pages `[B, key heads, room, 64, D]`, of
    which the first `pages` (int32 [1], on the device) are held; behind them the tokens of `recent_keys` and
    `recent_values` `[B, key heads, room, D]`.
    """

    keys: Parts
    values: Parts
    key_form: PageForm
    value_form: PageForm
    recent_keys: Tensor
    recent_values: Tensor
    pages: Tensor

    @property
    def tokens(self) -> int:
        """Tokens that there is room for."""
        return self.keys[0].shape[2] * PAGE + self.recent_keys.shape[2]


def naive_coded_decode(
    query: Tensor, cache: CodedCacheView, lengths: Tensor, starts: Tensor | None = None, *, scale: float | None = None
) -> Tensor:
    """`query` [B, H, D] over a cache from the definition, in float32: [B, H, D].

    Row b sees tokens `starts[b]` to `lengths[b]` (one length may serve all). A row that sees nothing gives zeros.
    """
    keys, values = (
        torch.cat([naive_page_values(parts, form)[:, :, : int(cache.pages)].flatten(2, 3), recent.float()], 2)
        for parts, form, recent in (
            (cache.keys, cache.key_form, cache.recent_keys),
            (cache.values, cache.value_form, cache.recent_values),
        )
    )
    return naive_decode_attention(
        query.float(), keys.transpose(1, 2), values.transpose(1, 2), lengths, starts, scale=scale
    )


def choose_coded_backend(
    query: Tensor, cache: CodedCacheView, lengths: Tensor, starts: Tensor | None = None
) -> str:  # fmt: skip
    """ "triton" where its kernel serves, which reads codes; else "torch", which makes numbers of them first."""
    served = query.is_cuda and bool(supports_coded_decode(query, cache, lengths, starts))
    return TRITON if served else TORCH


def coded_decode(
    query: Tensor, cache: CodedCacheView, lengths: Tensor, starts: Tensor | None = None, *, scale: float | None = None
) -> Tensor:
    """The same in the dtype of the query; what lies behind `lengths` must be finite."""
    if choose_coded_backend(query, cache, lengths, starts) == TRITON:
        from inference_pio.kernels.triton.coded_decode import coded_decode as split

        return split(query, cache, lengths, starts, scale=scale)
    held = int(cache.pages)  # where a GPU without the kernel is told how much to make
    keys, values = (
        torch.cat(
            [page_values(tuple(part[:, :, :held] for part in parts), form, query.dtype).flatten(2, 3), recent], 2
        ).transpose(1, 2)
        for parts, form, recent in (
            (cache.keys, cache.key_form, cache.recent_keys),
            (cache.values, cache.value_form, cache.recent_values),
        )
    )
    return decode_attention(query, keys, values, lengths, starts, scale=scale)
