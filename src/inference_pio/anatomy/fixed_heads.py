"""Attention of which some heads follow a fixed pattern of positions; the others are the dense function's."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from inference_pio.anatomy.attention_function import Attend
from inference_pio.anatomy.pattern_counts import PatternCounts
from inference_pio.anatomy.plain_calls import UNKNOWN_MASK, ExtentReader, why_dense
from inference_pio.kernels.fixed_attention import fixed_pattern_attention
from inference_pio.kernels.fixed_pattern import FixedPattern, causal_pairs
from inference_pio.kernels.plain_mask import Extent

FIXED_HEADS = "inference_pio_fixed_pattern"
"""The pattern's name, and the attribute under which a module holds its `FixedHeads`."""


@dataclass
class FixedHeads:
    """Which key heads of one module, and with them the query heads that share them, follow the pattern.

    Rows of fewer than `dense_below` tokens are left to the dense function.
    """

    pattern: FixedPattern
    key_heads: tuple[int, ...]
    dense_below: int = 0
    counts: PatternCounts = field(default_factory=PatternCounts)
    reader: ExtentReader = field(default_factory=ExtentReader)

    def is_dense(self, length: int) -> bool:
        """Whether a row of so many tokens is computed densely: by the bound, or as nothing would be left out."""
        return length < self.dense_below or length <= self.pattern.whole_until


def attend_with_fixed_heads(
    attend: Attend, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **rest: Any
) -> tuple[Tensor, Tensor | None]:
    """The pattern, in the form of `anatomy.attention_function`; what it leaves alone is counted with the reason."""
    if torch.compiler.is_compiling() or (query.is_cuda and torch.cuda.is_current_stream_capturing()):  # no host reads
        return attend(module, query, key, value, mask, **rest)
    heads: FixedHeads = vars(module)[FIXED_HEADS]
    reason = why_dense(module, rest)
    extent = heads.reader.read(mask, query, key) if reason is None else None
    if extent is None:
        heads.counts.left(reason or UNKNOWN_MASK)
        return attend(module, query, key, value, mask, **rest)
    if heads.is_dense(extent.end - min(extent.starts)):
        heads.counts.left("short rows")
        return attend(module, query, key, value, mask, **rest)
    return _by_rows(heads, attend, module, (query, key, value), mask, extent, rest), None


def _by_rows(
    heads: FixedHeads, attend: Attend, module: nn.Module, tensors: tuple[Tensor, Tensor, Tensor], mask: Tensor | None,
    extent: Extent, rest: dict[str, Any],
) -> Tensor:  # fmt: skip
    """Rows that begin at one key are served together."""
    outs = []
    for start, rows in extent.rows_by_start():
        query, key, value = (tensor[rows] for tensor in tensors)
        own = mask if mask is None or mask.shape[0] == 1 else mask[rows]
        if heads.is_dense(extent.end - start):
            heads.counts.left("short rows")
            outs.append(attend(module, query, key, value, own, **rest)[0])
        else:
            outs.append(_by_heads(heads, attend, module, (query, key, value), own, (start, extent.end), rest))
    return outs[0] if len(outs) == 1 else torch.cat(outs)


def _by_heads(
    heads: FixedHeads, attend: Attend, module: nn.Module, tensors: tuple[Tensor, Tensor, Tensor], mask: Tensor | None,
    span: tuple[int, int], rest: dict[str, Any],
) -> Tensor:  # fmt: skip
    query, key, value = tensors
    group, queries = query.shape[1] // key.shape[1], query.shape[2]
    dense = [head for head in range(key.shape[1]) if head not in heads.key_heads]
    of_queries = [head * group + shared for head in heads.key_heads for shared in range(group)]
    chosen = take_heads(query, of_queries), take_heads(key, heads.key_heads), take_heads(value, heads.key_heads)
    served = _sparse(heads, chosen, span, rest.get("scaling"), query.shape[1])
    if not dense:
        return served
    rest_of_queries = [head * group + shared for head in dense for shared in range(group)]
    others = take_heads(query, rest_of_queries), take_heads(key, dense), take_heads(value, dense)
    out = served.new_empty(query.shape[0], queries, query.shape[1], value.shape[-1])
    _put_heads(out, of_queries, served)
    _put_heads(out, rest_of_queries, attend(module, *others, mask, **rest)[0])
    return out


def _sparse(
    heads: FixedHeads, tensors: tuple[Tensor, Tensor, Tensor], span: tuple[int, int], scale: Any, all_heads: int
) -> Tensor:
    """[B, S, H, D] of the chosen heads; queries that stand before the first key of their row are padding: zeros."""
    query, key, value = tensors
    start, end = span
    first = max(end - query.shape[2], start)
    padding = query.shape[2] - (end - first)
    attend: Callable[..., tuple[Tensor, str]] = fixed_pattern_attention
    part, backend = attend(
        query[:, :, padding:], key[:, :, start:end], value[:, :, start:end], heads.pattern, scale=scale
    )
    seen, pairs = heads.pattern.seen(first - start, end - start), causal_pairs(first - start, end - start)
    batch, sparse_heads = query.shape[:2]
    kept = batch * (sparse_heads * seen + (all_heads - sparse_heads) * pairs)
    phase = "decode" if query.shape[2] == 1 else "prefill"
    heads.counts.served(phase, backend, kept=kept, of=batch * all_heads * pairs)
    if not padding:
        return part
    return torch.cat([part.new_zeros(batch, padding, *part.shape[2:]), part], 1)


def take_heads(tensor: Tensor, heads: Sequence[int]) -> Tensor:
    """Some heads of [B, H, S, D]: a view where they lie side by side.

    >>> take_heads(torch.arange(4.0).view(1, 4, 1, 1), [0, 2, 3]).flatten().tolist()
    [0.0, 2.0, 3.0]
    """
    runs = [tensor[:, first:last] for first, last in _runs(heads)]
    return runs[0] if len(runs) == 1 else torch.cat(runs, 1)


def _put_heads(out: Tensor, heads: Sequence[int], part: Tensor) -> None:
    done = 0
    for first, last in _runs(heads):
        out[:, :, first:last] = part[:, :, done : done + last - first]
        done += last - first


def _runs(heads: Sequence[int]) -> list[tuple[int, int]]:
    groups = itertools.groupby(enumerate(heads), lambda pair: pair[1] - pair[0])
    found = [[head for _, head in group] for _, group in groups]
    return [(run[0], run[-1] + 1) for run in found]
