"""What a layer keeps of each page of its keys beside them, for choosing pages without reading them."""

from __future__ import annotations

import torch

from inference_pio.cache.span import Span
from inference_pio.cache.store import Store
from inference_pio.kernels.page_summary import PageSummary, update_page_summary
from inference_pio.kernels.triton.attention_support import supports_page_summary


class KeySidecar:
    """The summary of a store's pages, kept with every write; of a latent, that of its whole rows."""

    def __init__(self, store: Store, span: Span) -> None:
        self.summary = PageSummary.zeros(store.scored)
        self.backend = choose_backend(self.summary, store, span)

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return self.summary.minimum, self.summary.maximum, self.summary.mean

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    def follow(self, store: Store, before: int, after: int, span: Span) -> None:
        """The store's length went from `before` to `after`: only the pages between are written."""
        if self.backend == "triton" and after > before and span.length is not None:
            from inference_pio.kernels.triton import page_summary

            page_summary.update_page_summary(self.summary, store.scored, span.length, after - before, span.starts)
        else:
            update_page_summary(self.summary, store.scored, before, after, span.starts)

    def grow(self, store: Store) -> None:
        """As many pages as a store that has grown."""
        old, self.summary = self.tensors, PageSummary.zeros(store.scored)
        for fresh, kept in zip(self.tensors, old, strict=True):
            fresh[:, :, : kept.shape[2]].copy_(kept)

    def select(self, rows: torch.Tensor) -> None:
        self.summary = PageSummary(*(tensor.index_select(0, rows) for tensor in self.tensors))


def choose_backend(summary: PageSummary, store: Store, span: Span) -> str:
    """What follows a write: "triton", one kernel that reads the length on the device, or "torch"; crops are torch's."""
    served = span.length is not None and supports_page_summary(summary, store.scored, span.length)
    return "triton" if served else "torch"
