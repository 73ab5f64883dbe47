"""Which pages of a cache one new token reads, by torch: the plain truth for `kernels.triton.page_choice`."""

from __future__ import annotations

import torch

from inference_pio.errors import InvalidSetting
from inference_pio.kernels.block_choice import Ranked
from inference_pio.kernels.page_estimate import estimate_pages
from inference_pio.kernels.page_list import PageList
from inference_pio.kernels.page_summary import PageSummary, update_page_summary
from inference_pio.kernels.triton.launch import PAGE


def rank_pages(
    query: torch.Tensor, summary: PageSummary, length: int, *, starts: torch.Tensor | None = None,
    scale: float | None = None, scorer: str = "mean", sinks: int = 1, local: int = 2, budget: int | None = None,
) -> Ranked:  # fmt: skip
    """The pages of `length` tokens in the order in which `query` [B, H, D] keeps them, [B, key heads, 1, pages]: the
    first `sinks` and the last `local` ones before all, and no more than `budget` of them."""
    estimate = estimate_pages(query, summary, length, scale=scale, starts=starts, scorer=scorer)[:, :, None]
    first = torch.arange(0, length, PAGE, device=query.device)
    number = torch.arange(first.numel(), device=query.device)
    begin = torch.zeros(1, 1, dtype=torch.int64, device=query.device) if starts is None else starts[:, None].long()
    visible = first + PAGE > begin
    sink = (number >= begin // PAGE) & (number < begin // PAGE + sinks)
    fixed = sink | (number >= first.numel() - local)
    ranked = Ranked.of(estimate, fixed[:, None, None], visible[:, None, None])
    return ranked if budget is None else ranked.at_most(budget)


def naive_choose_pages(
    query: torch.Tensor, summary: PageSummary, length: int, shares: torch.Tensor, *,
    starts: torch.Tensor | None = None, scale: float | None = None, scorer: str = "mean", sinks: int = 1,
    local: int = 2, budget: int | None = None, written: torch.Tensor | None = None, ahead: int = 0,
    lists: PageList | None = None,
) -> PageList:  # fmt: skip
    """What `choose_pages` chooses, for rows of one `length` that the host knows; into `lists`, if there are any.

    >>> summary = PageSummary.zeros(torch.zeros(1, 704, 1, 8))
    >>> chosen = naive_choose_pages(torch.ones(1, 2, 8), summary, 600, torch.tensor([0.1]), ahead=50)
    >>> chosen.indices[0, 0, : chosen.counts[0, 0]].tolist()
    [0, 8, 9, 10]
    """
    pages, in_all = -(-length // PAGE), summary.mean.shape[2]
    if written is not None:
        update_page_summary(summary, written, max(0, length - 1 - ahead) // PAGE * PAGE, length, starts)
    to_come = range(pages, min(-(-(length + ahead) // PAGE), in_all))
    if budget is not None:
        budget = min(max(budget, sinks + local + -(-ahead // PAGE)), in_all) - len(to_come)
    ranked = rank_pages(
        query, summary, length, starts=starts, scale=scale, scorer=scorer, sinks=sinks, local=local, budget=budget
    )
    kept = ranked.kept(shares[None, :, None].expand(ranked.before.shape[:-1]))[:, :, 0]
    kept = torch.nn.functional.pad(kept, (0, len(to_come)), value=True)
    counts = kept.sum(-1, dtype=torch.int32)
    order = kept.int().sort(dim=-1, descending=True, stable=True).indices.int()
    if lists is None:
        return PageList(counts, order)
    listed = min(order.shape[-1], lists.indices.shape[-1])
    if budget is not None and listed < min(budget + len(to_come), order.shape[-1]):
        raise InvalidSetting(
            f"lists of {listed} pages are not for up to {budget + len(to_come)}: make them by PageList.empty."
        )
    lists.counts.copy_(counts)
    lists.indices[..., :listed].copy_(order[..., :listed])
    return lists
