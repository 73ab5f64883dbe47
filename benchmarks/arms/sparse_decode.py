"""Attention of one new token over chosen pages of a long cache: the bytes of the whole cache over the time of one call.

A rate beyond what memory gives is what was left out. Choosing is part of the call, as the package decodes: the summary
of the page that the token was written to, the ranking of all pages by their least and largest keys, attention.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.arms import decode_attention
from benchmarks.arms.problem import Inputs, KernelArm, Make, Problem, Run, relative_error
from benchmarks.suites import Suite
from inference_pio.kernels.attention import naive_attention
from inference_pio.kernels.page_estimate import estimate_pages
from inference_pio.kernels.page_list import PageList
from inference_pio.kernels.page_summary import PageSummary, update_page_summary
from inference_pio.kernels.triton.launch import PAGE
from inference_pio.sparsity.audited_decode import AuditedDecode, DecodeSettings

BUDGET, SMOKE_BUDGET = 4096, 256
"""Tokens that a head reads."""
SCORER = "bounds"
RUN = 4
"""Tokens that recorded steps take in one go, and choose pages for together."""


def problems(suite: Suite, smoke: bool) -> list[Problem]:
    return [_problem(suite.heads, length, SMOKE_BUDGET if smoke else BUDGET) for length in suite.lengths]


def _problem(heads: tuple[int, int, int], length: int, budget: int) -> Problem:
    """`nbytes` is what a call over chosen pages reads: so many calls in turn find none of it in the GPU's cache."""
    dense = decode_attention.problem(heads, 1, length, length)
    given = {**dense.given, "budget": budget}
    return replace(
        dense, name=f"{length}, {budget} read", given=given, nbytes=4 * heads[1] * heads[2] * budget, turns=RUN
    )


def _with_summary(problem: Problem, inputs: Inputs) -> Inputs:
    """The page summaries that the cache's writes left."""
    keys = inputs[1]
    summary = PageSummary.zeros(keys)
    update_page_summary(summary, keys, 0, problem["length"])
    return *inputs, summary


def _decoding(problem: Problem, device: torch.device) -> AuditedDecode:
    """Of a layer of which nothing is known yet: its heads ask for all pages, and get those of the budget."""
    heads, key_heads, _ = problem["heads"]
    return AuditedDecode(heads, key_heads, DecodeSettings(scorer=SCORER, budget=problem["budget"]), device)


def _by_budget(tokens: int) -> Make:
    """Pages are chosen at every so manieth call."""

    def make(problem: Problem, device: torch.device, smoke: bool) -> Run:
        decoding, attend = _decoding(problem, device), decode_attention.launched(None)
        turns = itertools.cycle(range(tokens))
        held: list[PageList] = []

        def run(query: Tensor, key: Tensor, value: Tensor, lengths: Tensor, summary: PageSummary) -> Tensor:
            if next(turns) == 0:
                held[:] = [decoding.list_pages(query, summary, lengths, written=key, ahead=tokens - 1)]
            return attend(query, key, value, lengths, held[0])

        return run

    return make


def _with_pages(problem: Problem, inputs: Inputs) -> Inputs:
    """The first page and the last ones, the same for all heads."""
    query, key, _, _ = inputs
    pages, most = -(-problem["length"] // PAGE), problem["budget"] // PAGE
    numbers = [0, *range(max(1, pages - most + 1), pages)]
    shape = (query.shape[0], key.shape[2])
    indices = torch.tensor(numbers, dtype=torch.int32, device=query.device).repeat(*shape, 1)
    return *inputs, PageList(torch.full(shape, len(numbers), dtype=torch.int32, device=query.device), indices)


def _fixed(problem: Problem, device: torch.device, smoke: bool) -> Run:
    return decode_attention.launched(None)


def _chosen(problem: Problem, inputs: Inputs) -> PageList:
    """What `pio-budget` reads: without audits it is the same at each call."""
    query, _, _, lengths, summary = _with_summary(problem, inputs)
    return _decoding(problem, query.device).list_pages(query, summary, lengths)


def _listed(problem: Problem, inputs: Inputs) -> PageList:
    return _with_pages(problem, inputs)[-1]  # type: ignore[no-any-return]


Lists = Callable[[Problem, Inputs], PageList]


def seen_by(pages: PageList, length: int) -> Tensor:
    """Which tokens the listed pages hold: boolean [B, key heads, length]."""
    return pages.kept(-(-length // PAGE)).repeat_interleave(PAGE, -1)[..., :length]


def _error(lists: Lists) -> Any:
    """Against attention over the listed pages by definition; and these must weigh what the best ones weigh."""

    def error(problem: Problem, out: Tensor, inputs: Inputs) -> float:
        query, key, value, _ = inputs
        pages, group = lists(problem, inputs), query.shape[1] // key.shape[2]
        seen = seen_by(pages, problem["length"]).repeat_interleave(group, 1)[:, :, None]
        wanted = naive_attention(query[:, :, None], key.transpose(1, 2), value.transpose(1, 2), seen)[:, :, 0]
        off = relative_error(out, wanted)
        return off if lists is _listed else max(off, lost(problem, inputs, pages))

    return error


def lost(problem: Problem, inputs: Inputs, pages: PageList) -> float:
    """How much less the chosen pages weigh, by torch's estimate, than as many that rank first beside those always read:
    the largest share that a head lost. More pages than the budget count as lost too."""
    query, _, _, _, summary = _with_summary(problem, inputs)
    estimate = estimate_pages(query, summary, problem["length"], scorer=SCORER)
    most, settings = problem["budget"] // PAGE, DecodeSettings()
    if int(pages.counts.max()) > most:
        return 1.0
    raised = estimate.clone()
    raised[..., : settings.sinks] += 1
    raised[..., -settings.local :] += 1
    best = raised.topk(min(most, estimate.shape[-1]), -1).indices
    wanted, found = estimate.gather(-1, best).sum(-1), (estimate * pages.kept(estimate.shape[-1])).sum(-1)
    return float((1 - found / wanted).max().clamp(min=0))


def _facts(lists: Lists) -> Any:
    """Tokens that a head read, and the share of the whole attention that they hold."""

    def facts(problem: Problem, inputs: Inputs) -> Mapping[str, Any]:
        query, key, _, _ = inputs
        seen = seen_by(lists(problem, inputs), problem["length"])
        group = query.shape[1] // key.shape[2]
        scores = torch.einsum("bhd,bshd->bhs", query.float(), key.repeat_interleave(group, 2).float())
        weights = torch.softmax(scores * query.shape[-1] ** -0.5, -1)
        covered = (weights * seen.repeat_interleave(group, 1)).sum(-1)
        return {"tokens read": float(seen.sum(-1).float().mean()), "coverage": float(covered.mean())}

    return facts


def _all(problem: Problem, inputs: Inputs) -> Mapping[str, Any]:
    return {"tokens read": problem["length"], "coverage": 1.0}


def _sparse(label: str, make: Any, prepare: Any, lists: Lists) -> KernelArm:
    return KernelArm(label, make, triton=True, prepare=prepare, error=_error(lists), facts=_facts(lists))


ARMS: dict[str, KernelArm] = {
    "default": replace(decode_attention.ARMS["default"], facts=_all),
    "triton": replace(decode_attention.ARMS["triton"], facts=_all),
    "pio-budget": _sparse(
        "inference-pio, pages chosen by Quest's bounds and read, in a graph (without audits)",
        _by_budget(1), _with_summary, _chosen,
    ),
    "pio-budget-x4": _sparse(
        "the same, chosen at every fourth token, as recorded steps choose",
        _by_budget(RUN), _with_summary, _chosen,
    ),
    "pio-pages": _sparse("the same kernel over the first page and the last ones", _fixed, _with_pages, _listed),
}  # fmt: skip
