"""Attention of spikes: every product has spikes on one side, which add what the other side holds.

Keys and values arrive first and are held as whole numbers, then the queries' spikes add keys to the scores, and those
of the attention weights add values to the result. The softmax's exponentials and its division are ordinary arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from inference_pio.kernels.spikes import Code, counts, potentials, spikes_in, trains
from inference_pio.kernels.spiking_product import from_counts, from_spikes

FINER = 4
"""How much finer weights of attention are told where second neurons can take the large ones. On `qwen3` at 15 levels
the perplexity ratio of attention alone falls from 1.041 to 1.014; at 16 times as fine, to 1.013."""
MOST_BITS = 20
"""Of what a spike of a key's channel adds: its threshold times the query's, in units of the largest of its head."""
ROWS = 512
"""Queries that are computed together, so that scores of long prompts fit."""


@dataclass
class Thresholds:
    """Of each key head and channel: `query` and `key` [Hk, D], `value` [Hk, Dv], float64."""

    query: Tensor
    key: Tensor
    value: Tensor


@dataclass
class Counted:
    """How many values were told by how many spikes, and how many additions these led to."""

    name: str
    activations: Tensor | int
    spikes: Tensor | int
    accumulates: Tensor | int
    multiplies: Tensor | int = 0
    """What dense attention does in the same place."""
    results: Tensor | int = 0


def naive_spiking_attention(
    query: Tensor, key: Tensor, value: Tensor, thresholds: Thresholds, code: Code, visible: Tensor, scale: float
) -> Tensor:
    """What it comes to, from rounded numbers in float64: [B, H, S, Dv]. `visible` [B or 1, 1, S, T] is boolean."""
    groups = query.shape[1] // key.shape[1]

    def told(x: Tensor, threshold: Tensor) -> Tensor:
        step = threshold[:, None]
        return ((x.double() / step + 0.5).floor().clamp(-code.reach, code.reach) * step).double()

    step = thresholds.query.repeat_interleave(groups, 0)
    scores = told(query, step) @ told(key, thresholds.key).repeat_interleave(groups, 1).transpose(-1, -2) * scale
    scores = scores.masked_fill(~visible, float("-inf"))
    mass = (scores - scores.amax(-1, keepdim=True)).exp().nan_to_num(0.0)
    shares = (mass / share_threshold(code) + 0.5).floor()
    mixed = shares @ told(value, thresholds.value).repeat_interleave(groups, 1)
    return mixed / shares.sum(-1, keepdim=True).clamp(min=1.0)


def visible_keys(mask: Tensor | None, queries: int, keys: int, causal: bool, device: torch.device) -> Tensor | None:
    """A boolean mask of what queries see; None for one that adds finite numbers, too, which spikes do not know."""
    if mask is None:
        seen = torch.ones(queries, keys, dtype=torch.bool, device=device)
        return (seen.tril(keys - queries) if causal else seen)[None, None]
    if mask.dtype == torch.bool:
        return mask
    seen = mask > torch.finfo(mask.dtype).min / 2
    return seen if bool((mask.masked_fill(~seen, 0) == 0).all()) else None


def spiking_attention(
    query: Tensor, key: Tensor, value: Tensor, thresholds: Thresholds, code: Code, visible: Tensor, scale: float, *,
    at_once: bool = False, note: Callable[[Counted], None] | None = None,
) -> Tensor:  # fmt: skip
    """[B, H, S, Dv] in the dtype of `query` [B, H, S, D]; `key` and `value` [B, Hk, T, ...] may have fewer heads.

    `at_once` computes from counts what spikes add up to. `note` hears what fired.
    """
    batch, heads, queries, width = query.shape
    key_heads, keys = key.shape[1:3]
    groups = heads // key_heads
    unit, whole = _units(thresholds, code)
    hold = _counted if at_once else _added_up
    held_keys = hold(potentials(key, thresholds.key[:, None], code), code)
    held_values = hold(potentials(value, thresholds.value[:, None], code), code)
    weighted = (held_keys * whole[:, None]).transpose(-1, -2)  # [B, Hk, D, T]
    results = []
    for rows in _row_blocks(queries):
        asked = query[:, :, rows].reshape(batch, key_heads, groups * len(range(*rows.indices(queries))), width)
        seen = visible[..., rows, :] if visible.shape[-2] > 1 else visible
        seen = seen.expand(batch, -1, -1, keys)
        told = potentials(asked, thresholds.query[:, None], code)
        scores = _mapped(told, code, at_once, lambda spikes: spikes @ weighted)
        scores = scores * (unit[:, None, None] * scale)
        scores = scores.view(batch, heads, -1, keys).masked_fill(~seen, float("-inf"))
        mass = _mass(scores)
        shares = potentials(mass, mass.new_tensor(share_threshold(code)), code)
        shares = shares.view(batch, key_heads, -1, keys)
        mixed = _mapped(shares, code, at_once, lambda spikes: spikes @ held_values)
        mixed = mixed * thresholds.value[:, None] / counts(shares).sum(-1, keepdim=True).clamp(min=1.0)
        results.append(mixed.view(batch, heads, -1, mixed.shape[-1]))
        if note is not None:
            _note_rows(note, told, shares, seen, code, groups, value.shape[-1])
    if note is not None:
        fresh = slice(max(keys - queries, 0), None)  # older ones were told when they came
        for name, held in (("key", held_keys[:, :, fresh]), ("value", held_values[:, :, fresh])):
            fired = spikes_in(held, code)
            note(Counted(name, held.numel(), fired.sum(), fired.sum()))
    return torch.cat(results, 2).to(query.dtype)


def share_threshold(code: Code) -> float:
    """The threshold of weights of attention, of which the largest in a row is 1.

    >>> share_threshold(Code("radix", 8)), share_threshold(Code("radix", 8, second=True))
    (0.125, 0.03125)
    """
    return 1 / (FINER * code.levels) if code.second and code.reach >= FINER * code.levels else 1 / code.levels


def unit_bits(width: int, code: Code) -> int:
    """How finely the products of thresholds can be told, so that sums over `width` channels stay exact.

    >>> unit_bits(128, Code("radix", 15, second=True)), unit_bits(128, Code("radix", 255, second=True))
    (20, 12)
    """
    return min(MOST_BITS, 53 - width.bit_length() - 2 * code.reach.bit_length())


def _units(thresholds: Thresholds, code: Code) -> tuple[Tensor, Tensor]:
    """What a spike of a query adds for each count of a key: a unit [Hk], and whole numbers of it [Hk, D]."""
    product = thresholds.query * thresholds.key
    unit = product.amax(-1) / 2 ** unit_bits(product.shape[-1], code)
    return unit, (product / unit[:, None]).round()


def _mass(scores: Tensor) -> Tensor:
    """Attention before it is divided: 1 for the key that is looked at most; 0 in rows that see none."""
    most = scores.amax(-1, keepdim=True)
    return torch.where(most == float("-inf"), 0.0, (scores - most).exp())


def _mapped(held: Tensor, code: Code, at_once: bool, product: Callable[[Tensor], Tensor]) -> Tensor:
    return from_counts(counts(held), product) if at_once else from_spikes(trains(held, code), product)


def _counted(held: Tensor, code: Code) -> Tensor:
    return counts(held)


def _added_up(held: Tensor, code: Code) -> Tensor:
    return from_spikes(trains(held, code), lambda spikes: spikes)


def _row_blocks(queries: int) -> Iterator[slice]:
    for start in range(0, queries, ROWS):
        yield slice(start, min(start + ROWS, queries))


def _note_rows(
    note: Callable[[Counted], None], told: Tensor, shares: Tensor, seen: Tensor, code: Code, groups: int, value_dim: int
) -> None:
    of_queries = spikes_in(counts(told), code).sum(-1)  # [B, Hk, G * S]
    pairs = seen[:, :1].sum(-1).expand(-1, told.shape[1], -1).repeat(1, 1, groups)
    seen_pairs = pairs.sum()
    additions = (of_queries * pairs).sum()
    note(Counted("query", told.numel(), of_queries.sum(), additions, seen_pairs * told.shape[-1], seen_pairs))
    fired = spikes_in(counts(shares), code).sum()
    results = told[..., 0].numel() * value_dim
    note(Counted("share", seen_pairs, fired, fired * value_dim, seen_pairs * value_dim, results))
