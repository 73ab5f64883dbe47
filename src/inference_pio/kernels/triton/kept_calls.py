"""Calls of attention that are kept: what shapes and strides alone decide is decided once, and not in each layer.

Asking whether a kernel serves, describing tensors to the copy engine and finding what was compiled take the host longer
than a prompt of a thousand tokens takes the GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from inference_pio.kernels.block_sparse import BlockList

Form = tuple[Any, ...]
MOST = 4096
"""Calls that are kept: a chunk behind each length of a cache is a form of its own."""


class KeptCalls(dict[Form, Callable[..., torch.Tensor]]):
    """Calls by the form of their tensors; all are forgotten where there would be too many.

    >>> kept = KeptCalls(most=1)
    >>> kept.keep((1,), print), kept.keep((2,), print)
    (None, None)
    >>> kept.get((1,)), kept.get((2,))
    (None, <built-in function print>)
    """

    def __init__(self, most: int = MOST) -> None:
        super().__init__()
        self.most = most

    def keep(self, form: Form, call: Callable[..., torch.Tensor]) -> None:
        if len(self) >= self.most:
            self.clear()
        self[form] = call


def form_of(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, out: torch.Tensor | None, *, causal: bool,
    starts: torch.Tensor | None, lists: BlockList | None, lse: torch.Tensor | None,
) -> Form:  # fmt: skip
    """All of a call but where its tensors lie and what they hold."""
    return (
        query.shape, query.stride(), query.dtype, query.device,
        key.shape, key.stride(), key.dtype, key.device,
        value.shape, value.stride(), value.dtype, value.device,
        causal,
        None if out is None else (out.shape, out.stride(), out.dtype, out.device),
        None if starts is None else starts.dtype,
        None if lse is None else lse.dtype,
        None if lists is None else (lists.query_block, lists.key_block, lists.counts.dtype, lists.indices.dtype),
    )  # fmt: skip


def serve_again(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, out: torch.Tensor | None) -> bool:
    """Whether tensors of a kept form are served too: they begin where the copy engine can address them, and none asks
    for a gradient."""
    places = query.data_ptr() | key.data_ptr() | value.data_ptr() | (0 if out is None else out.data_ptr())
    if places % 16:
        return False
    return not torch.is_grad_enabled() or not (query.requires_grad or key.requires_grad or value.requires_grad)
