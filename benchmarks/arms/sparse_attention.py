"""Attention of a long prompt that leaves keys out, against the best dense kernels, as the dense work over the time.

Three kinds of lists of blocks: built with a density, sinks and a window, and selected by what queries and keys are. The
last needs attention that is peaked as trained models' is: queries and keys recorded from a reference model, tiled.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.arms import attention
from benchmarks.arms.problem import Inputs, KernelArm, Make, Problem, Run
from benchmarks.suites import Suite
from inference_pio.kernels.block_sparse import BlockList
from inference_pio.kernels.triton.flash_launch import choose_flash_launch
from inference_pio.kernels.triton.launch import device_limits
from inference_pio.sparsity.audited_prefill import AuditedPrefill, PrefillSettings
from inference_pio.sparsity.backend import TRITON, choose_backend
from inference_pio.sparsity.coverage_control import CoverageTarget

MODEL = Path(__file__).parents[2] / "tests" / "models" / "qwen3"
DENSITY = 0.125
SINKS, WINDOW = 128, 2048
COVERAGE = 0.95
FLOORS = {"selected": COVERAGE, "mean": 0.875}
"""What rows must keep, all but one of twenty: by default, and so that 95% of the attention is kept on average."""
KEY_BLOCK, QUERY_BLOCK = 128, 128
RECORDED_TOKENS = 8192
LOOKED_AT, STEPS = 12, 501
"""Blocks of queries, and shares of their attention from a half on, of which the least density is told."""


class Selector:
    """The package's choice of blocks for one layer: as long as the queries are the same tensor, what its heads have
    shown stays, as it does in a model, and what was chosen last can be asked for again."""

    def __init__(self) -> None:
        self._place: tuple[Any, ...] = ()
        self._prefill: AuditedPrefill | None = None
        self._lists: BlockList | None = None

    def __call__(self, query: Tensor, key: Tensor, coverage: float) -> BlockList:
        """The blocks that hold `coverage` of the attention."""
        place = (query.data_ptr(), query.shape, coverage)
        if self._prefill is None or self._place != place:
            settings = PrefillSettings(coverage, query_block=_query_block(query.device, query.shape[-1]))
            self._place, self._prefill = place, AuditedPrefill(query.shape[1], settings, query.device)
        blocks = (self._prefill.settings.query_block, self._prefill.settings.key_block)
        if choose_backend(query, key, key, "mean", *blocks).name == TRITON:
            self._lists = self._prefill.list_blocks(query, key)
        else:
            self._lists = self._prefill.choose(query, key).lists()
        return self._lists

    def last(self, query: Tensor, key: Tensor, coverage: float) -> BlockList:
        """What was chosen last for these queries: audits are drawn anew each time, so the next choice is another."""
        if self._lists is None or self._place != (query.data_ptr(), query.shape, coverage):
            return self(query, key, coverage)
        return self._lists


select = Selector()


def built_lists(
    length: int, heads: int, density: float, device: torch.device, query_block: int = QUERY_BLOCK,
    key_block: int = KEY_BLOCK,
) -> BlockList:  # fmt: skip
    """Of each row's visible blocks that share, drawn by chance: always the first and those on the diagonal."""
    kept, crossing = _grid(length, heads, device, query_block, key_block)
    generator = torch.Generator(device).manual_seed(length)
    visible = kept.clone()
    kept &= torch.rand(kept.shape, generator=generator, device=device) < density
    kept |= crossing & visible
    kept[..., 0] = True
    return BlockList.from_kept(kept, query_block, key_block)


def window_lists(
    length: int, heads: int, device: torch.device, query_block: int = QUERY_BLOCK, *, sinks: int = SINKS,
    window: int = WINDOW,
) -> BlockList:  # fmt: skip
    """The first blocks and those of a window behind each query."""
    kept, _ = _grid(length, heads, device, query_block, KEY_BLOCK)
    columns = torch.arange(kept.shape[-1], device=device) * KEY_BLOCK
    first_rows = torch.arange(kept.shape[-2], device=device)[:, None] * query_block
    kept &= (columns < sinks) | (columns + KEY_BLOCK > first_rows - window + 1)
    return BlockList.from_kept(kept, query_block, KEY_BLOCK)


def _grid(length: int, heads: int, device: torch.device, query_block: int, key_block: int) -> tuple[Tensor, Tensor]:
    """Blocks that some query of a row may see [1, H, rows, columns], and those of them that hold the diagonal."""
    first = torch.arange(-(-length // query_block), device=device)[:, None] * query_block
    last = (first + query_block - 1).clamp(max=length - 1)
    columns = torch.arange(-(-length // key_block), device=device) * key_block
    visible, crossing = columns <= last, (columns <= last) & (columns + key_block > first)
    shape = (1, heads, *visible.shape)
    return visible.expand(shape).clone(), crossing.expand(shape)


def density_of(lists: BlockList, length: int) -> float:
    """Listed blocks over visible ones."""
    heads = lists.counts.shape[1]
    visible, _ = _grid(length, heads, lists.counts.device, lists.query_block, lists.key_block)
    return float(lists.counts.sum() / visible.sum())


def coverage_of(lists: BlockList, query: Tensor, key: Tensor) -> float:
    """The share of the attention of some rows that lies in listed blocks, in float32: the mean."""
    length, groups = query.shape[2], query.shape[1] // key.shape[1]
    rows = torch.linspace(0, length - 1, min(attention.ROWS, length), device=query.device).long()
    places, found = torch.arange(length, device=query.device), []
    for head in range(key.shape[1]):
        heads = slice(head * groups, (head + 1) * groups)
        scores = query[0, heads][:, rows].float() @ key[0, head].float().T / math.sqrt(query.shape[-1])
        weights = torch.softmax(scores.masked_fill(places > rows[:, None], float("-inf")), -1)
        found.append((weights * attention.listed(lists, heads, rows, places)).sum(-1))
    return float(torch.cat(found).mean())


def _lists_of(kind: str, problem: Problem, inputs: Inputs) -> BlockList:
    query, key, _ = inputs
    length, heads, device = problem["length"], query.shape[1], query.device
    block = _query_block(device, query.shape[-1])
    if kind == "built":
        return built_lists(length, heads, DENSITY, device, block)
    return window_lists(length, heads, device, block) if kind == "window" else select.last(query, key, FLOORS[kind])


def _query_block(device: torch.device, width: int) -> int:
    """Of the kernel as it is launched there: lists are made for one."""
    return choose_flash_launch(device_limits(device), width).query_block


def _sparse(kind: str) -> Make:
    def make(problem: Problem, device: torch.device, smoke: bool) -> Run:
        from inference_pio.kernels.triton.flash import flash_attention

        if kind in FLOORS:
            floor = FLOORS[kind]
            return lambda query, key, value: flash_attention(query, key, value, lists=select(query, key, floor))
        lists = _lists_of(kind, problem, problem.draw(device))
        return lambda query, key, value: flash_attention(query, key, value, lists=lists)

    return make


def _selection(problem: Problem, device: torch.device, smoke: bool) -> Run:
    return lambda query, key, value: select(query, key, COVERAGE).counts


def _error(kind: str) -> Any:
    def error(problem: Problem, out: Tensor, inputs: Inputs) -> float:
        return attention.error_of(out, *inputs, _lists_of(kind, problem, inputs))

    return error


def least_density(query: Tensor, key: Tensor, floor: float, query_block: int, key_block: int = KEY_BLOCK) -> float:
    """The least share of visible blocks that holds what `CoverageTarget` asks for, by the true weights of some blocks
    of queries, sorted: what no choice can go below. The mean over the heads."""
    target, heads, blocks, least = CoverageTarget(floor), query.shape[1], query.shape[2] // query_block, 0.0
    rows = torch.linspace(max(0, blocks // 4), max(0, blocks - 2), LOOKED_AT).long().unique()
    for head in range(heads):
        shared = key[0, head * key.shape[1] // heads]
        kept = [_kept_at_shares(query[0, head], shared, int(row), query_block, key_block) for row in rows]
        coverage, density = (torch.stack(each) for each in zip(*kept, strict=True))
        holds = (coverage.mean(0) >= target.mean) & ((coverage < floor).float().mean(0) <= target.exceptions)
        least += float(density.mean(0)[holds].min()) if bool(holds.any()) else 1.0
    return least / heads


def _kept_at_shares(query: Tensor, key: Tensor, row: int, query_block: int, key_block: int) -> tuple[Tensor, Tensor]:
    """The true attention that one block of queries keeps, and its share of the blocks, for each share asked for."""
    first, last = row * query_block, (row + 1) * query_block
    blocks = -(-last // key_block)
    scores = query[first:last].float() @ key[:last].float().T / math.sqrt(query.shape[-1])
    places = torch.arange(last, device=key.device)
    weights = torch.softmax(scores.masked_fill(places > places[first:last, None], float("-inf")), -1)
    mass = torch.nn.functional.pad(weights.mean(0), (0, blocks * key_block - last)).view(blocks, key_block).sum(1)
    held = mass.sort(descending=True).values.cumsum(0)
    shares = torch.linspace(0.5, 1.0, STEPS, device=key.device)
    count = torch.searchsorted(held, shares).clamp(max=blocks - 1)
    return held[count].cpu(), (count + 1).cpu() / blocks


def _facts(kind: str) -> Any:
    def facts(problem: Problem, inputs: Inputs) -> Mapping[str, Any]:
        lists = _lists_of(kind, problem, inputs)
        told = {"density": density_of(lists, problem["length"]), "coverage": coverage_of(lists, *inputs[:2])}
        if kind in FLOORS:
            told["least density"] = least_density(*inputs[:2], FLOORS[kind], lists.query_block, lists.key_block)
        return told

    return facts


def _arm(label: str, kind: str) -> KernelArm:
    ahead = kind in FLOORS
    return KernelArm(label, _sparse(kind), triton=True, error=_error(kind), facts=_facts(kind), ahead=ahead)


ARMS: dict[str, KernelArm] = {
    "cudnn": attention.ARMS["cudnn"],
    "flash": attention.ARMS["flash"],
    "triton": attention.ARMS["triton"],
    "pio-built": _arm(f"inference-pio, lists of {DENSITY:.1%} of the blocks", "built"),
    "pio-window": _arm(f"inference-pio, {SINKS} sinks and a window of {WINDOW}", "window"),
    "pio-selected": _arm(f"inference-pio, blocks selected for {COVERAGE:.0%} of the attention", "selected"),
    "pio-selected-mean": _arm(f"the same for {CoverageTarget(FLOORS['mean']).mean:.0%} on average", "mean"),
    "pio-selection": KernelArm(
        "the same, the selection alone",
        _selection,
        triton=True,
        error=lambda *_: 0.0,
        facts=_facts("selected"),
        ahead=True,
    ),
}


def problems(suite: Suite, smoke: bool) -> list[Problem]:
    heads, _, width = suite.heads

    def problem(length: int, name: str, draw: Any) -> Problem:
        return Problem(
            f"{length}, {name}", "TFLOP/s", attention.flops(length, heads, width), draw,
            lambda out, given: attention.error_of(out, *given),
            {"length": length, "heads": suite.heads, "layout": suite.layout},
        )  # fmt: skip

    chance = [problem(n, "by chance", functools.partial(attention.inputs, n, *suite.heads)) for n in suite.lengths]
    tiled = [problem(n, "recorded", functools.partial(recorded_inputs, n, suite.heads, smoke)) for n in suite.lengths]
    return chance + tiled


def recorded_inputs(length: int, heads: tuple[int, int, int], smoke: bool, device: torch.device) -> Inputs:
    """Queries, keys and values of a reference model's text: its heads in turn, its width doubled with the same scores
    and its tokens repeated until they are as many as asked."""
    query, key, value = _recorded(128 if smoke else RECORDED_TOKENS, device)
    count, key_heads, width = heads
    group, own_group = count // key_heads, query.shape[0] // key.shape[0]
    chosen = torch.arange(key_heads, device=device) % key.shape[0]
    heads_of_query = (chosen[:, None] * own_group + torch.arange(group, device=device) % own_group).flatten()
    query, key, value = query[heads_of_query], key[chosen], value[chosen]
    wider = width / query.shape[-1]
    query = query * wider**-0.5  # scores are divided by the root of the width, and sums are that much larger

    def tiled(tensor: Tensor) -> Tensor:
        tensor = tensor.repeat(1, math.ceil(length / tensor.shape[1]), math.ceil(max(1, wider)))
        return tensor[None, :, :length, :width].transpose(1, 2).contiguous().transpose(1, 2)

    return tiled(query), tiled(key), tiled(value)


@functools.cache
def _recorded(tokens: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Of all layers, [layers x heads, tokens, width] in bfloat16, as the attention function gets them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    from inference_pio.measure import evaluation_text

    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.bfloat16, local_files_only=True)
    model = model.to(device).eval()
    text = AutoTokenizer.from_pretrained(MODEL, local_files_only=True)(evaluation_text()[: 16 * tokens])["input_ids"][
        :tokens
    ]
    inner, found = ALL_ATTENTION_FUNCTIONS["sdpa"], []

    def listen(module: Any, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **options: Any) -> Any:
        found.append((query[0], key[0], value[0]))
        return inner(module, query, key, value, *rest, **options)

    ALL_ATTENTION_FUNCTIONS["benchmark_listens"] = listen
    model.config._attn_implementation = "benchmark_listens"
    with torch.no_grad():
        model(input_ids=torch.tensor([text], device=device), use_cache=False, logits_to_keep=1)
    del ALL_ATTENTION_FUNCTIONS["benchmark_listens"]
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))  # type: ignore[return-value]
