"""Estimates of how much attention one new token pays to each page of a cache, from what is kept of each page's keys."""

from __future__ import annotations

import torch

from inference_pio.kernels.page_summary import PageSummary

SCORERS = ("mean", "bounds", "both")


def estimate_pages(
    query: torch.Tensor, summary: PageSummary, length: int, *, page_size: int = 64, scale: float | None = None,
    starts: torch.Tensor | None = None, scorer: str = "mean",
) -> torch.Tensor:  # fmt: skip
    """`query` [B, H, D] over the pages of `length` tokens: float32 [B, key heads, pages], each row sums to 1.

    Heads that share keys share pages: their estimates are averaged. "mean" scores a page by its mean key; "bounds" by
    the largest score that its least and largest keys allow (Quest, arXiv 2406.10774); "both" by the middle of the two,
    which tells apart what single keys stand out of.
    """
    pages = -(-length // page_size)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    queries = query.float().unflatten(1, (summary.mean.shape[1], -1)) * scale
    scores = 0.0
    if scorer in ("mean", "both"):
        scores = queries @ summary.mean[:, :, :pages].float().transpose(-1, -2)
    if scorer in ("bounds", "both"):
        least, largest = (one[:, :, :pages].float().transpose(-1, -2) for one in (summary.minimum, summary.maximum))
        bounds = queries.clamp(min=0) @ largest + queries.clamp(max=0) @ least
        scores = bounds if scorer == "bounds" else (scores + bounds) / 2
    first = torch.arange(0, length, page_size, device=query.device)
    held = (length - first).clamp(max=page_size).expand(query.shape[0], -1)
    if starts is not None:
        held = held - (starts[:, None] - first).clamp(min=0)
    scores = scores + held.clamp(min=0).float().log()[:, None, None]
    return torch.softmax(scores, -1).mean(2)
