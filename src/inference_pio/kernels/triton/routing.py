"""Which experts a token goes to, in one launch: many programs score experts, the last one of each token chooses.

The plain truth is `kernels.routing.naive_route`; what the library rounds is rounded here, so that its choice is met up
to the order of float32 sums. Of equal scores the lowest number wins.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

import triton
import triton.language as tl
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.routing import Routed, RoutingRule
from inference_pio.kernels.triton.experts_launch import RowLaunch, choose_route_launch
from inference_pio.kernels.triton.launch import on_device
from inference_pio.kernels.triton.overlap import overlapping, wait_for_others
from inference_pio.kernels.triton.row_support import supports_rows
from inference_pio.kernels.triton.support import require


@dataclass(frozen=True)
class RoutingScratch:
    """What programs leave for the last of them: logits float32 [M, E], and how many have come, int32 [M], which is
    zero between launches."""

    logits: torch.Tensor
    arrived: torch.Tensor

    @classmethod
    def of(cls, tokens: int, experts: int, device: torch.device) -> RoutingScratch:
        arrived = torch.zeros(tokens, dtype=torch.int32, device=device)
        return cls(torch.empty(tokens, experts, device=device), arrived)


@triton.jit
def best_groups(choice, number, GROUPS: tl.constexpr, TOP_GROUPS: tl.constexpr, SIZE: tl.constexpr):
    """`choice` with -inf outside of the groups whose two best experts have the largest sums."""
    group = number // SIZE
    standing = tl.full(choice.shape, float("-inf"), tl.float32)
    for one in tl.range(0, GROUPS):
        inside = tl.where(group == one, choice, float("-inf"))
        first = tl.argmax(inside, 0)
        second = tl.max(tl.where(number == first, float("-inf"), inside), 0)
        standing = tl.where(group == one, tl.max(inside, 0) + second, standing)
    kept = group < 0
    for _ in tl.range(0, TOP_GROUPS):
        best = tl.argmax(standing, 0) // SIZE
        kept = kept | (group == best)
        standing = tl.where(group == best, float("-inf"), standing)
    return tl.where(kept, choice, float("-inf"))


@triton.jit(do_not_specialize_on_alignment=["correction", "arrived", "index", "chosen_weight"])
def route_kernel(
    x, gate, norm_weight, correction, normed, logits, arrived, index, chosen_weight,
    x_row, normed_row, eps, scale, norm_floor,
    WIDTH: tl.constexpr, EXPERTS: tl.constexpr, PADDED: tl.constexpr, TOP_K: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, NORMED: tl.constexpr, CORRECTED: tl.constexpr, SOFTMAX: tl.constexpr,
    NORMALISED: tl.constexpr, GROUPS: tl.constexpr, TOP_GROUPS: tl.constexpr, DEPENDENT: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    tile, token = tl.program_id(0), tl.program_id(1)

    # Some experts' logits, in one step: a walk along the row would have to be walked twice, for the norm's sum first.
    rows, columns = tile * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    inside = columns < WIDTH
    gate_places = gate + rows[:, None] * WIDTH + columns[None, :]
    gates = tl.load(gate_places, mask=(rows < EXPERTS)[:, None] & inside[None, :], other=0.0)
    if NORMED:
        weights = tl.load(norm_weight + columns, mask=inside, other=0.0)
    if DEPENDENT:
        wait_for_others(INTERPRETED)
    seen = tl.load(x + token * x_row + columns, mask=inside, other=0.0)
    mine = seen.to(tl.float32)
    if NORMED:
        mine *= tl.rsqrt(tl.sum(mine * mine, 0) / WIDTH + eps)
        mine = mine.to(seen.dtype).to(tl.float32) * weights.to(tl.float32)
        mine = mine.to(seen.dtype).to(tl.float32)
    found = tl.sum(mine[None, :] * gates.to(tl.float32), 1)
    tl.store(logits + token * EXPERTS + rows, found, mask=rows < EXPERTS)

    tl.debug_barrier()
    came_before = tl.atomic_add(arrived + token, 1, sem="acq_rel")
    if NORMED and tile == 0:
        tl.store(normed + token * normed_row + columns, mine.to(normed.dtype.element_ty), mask=inside)
    if came_before != tl.num_programs(0) - 1:
        return

    # The last program of a token chooses. What the others stored is seen after the counter, past the first cache.
    tl.store(arrived + token, 0)
    number = tl.arange(0, PADDED)
    real = number < EXPERTS
    found = tl.load(logits + token * EXPERTS + number, mask=real, other=float("-inf"), cache_modifier=".cg")
    if SOFTMAX:
        found = found.to(x.dtype.element_ty).to(tl.float32)
        scores = tl.exp(found - tl.max(found, 0))
        scores = scores / tl.sum(scores, 0)
    else:
        scores = tl.sigmoid(found)
    choice = scores
    if CORRECTED:
        choice += tl.load(correction + number, mask=real, other=0.0)
    choice = tl.where(real, choice, float("-inf"))
    if TOP_GROUPS < GROUPS:
        choice = best_groups(choice, number, GROUPS, TOP_GROUPS, EXPERTS // GROUPS)
    slot = tl.full([PADDED], TOP_K, tl.int32)
    for rank in tl.range(0, TOP_K):
        best = number == tl.argmax(choice, 0)
        slot = tl.where(best, rank, slot)
        choice = tl.where(best, float("-inf"), choice)
    chosen = slot < TOP_K
    if NORMALISED:
        scores = scores / (tl.sum(tl.where(chosen, scores, 0.0), 0) + norm_floor)
    place = token * TOP_K + slot
    tl.store(index + place, number.to(index.dtype.element_ty), mask=chosen)
    tl.store(chosen_weight + place, (scores * scale).to(chosen_weight.dtype.element_ty), mask=chosen)


def route(
    x: torch.Tensor,
    gate: torch.Tensor,
    rule: RoutingRule,
    *,
    correction: torch.Tensor | None = None,
    norm_weight: torch.Tensor | None = None,
    eps: float = 0.0,
    out: Routed | None = None,
    scratch: RoutingScratch | None = None,
    launch: RowLaunch | None = None,
    dependent: bool = False,
) -> Routed:
    """`kernels.routing.route` for few tokens `x` [M, H], chosen experts by falling score; the index is int32 unless
    `out` has another.

    Nothing is allocated where `out`, `scratch` and `launch` are given (without a `norm_weight` the tokens themselves
    are `normed`); nothing waits for the device. A `dependent` launch begins before the kernel in front of it has ended,
    which must not write `gate` or `norm_weight`. Raises InvalidSetting for what `supports_rows` refuses.
    """
    require(supports_rows(x, gate, *(() if norm_weight is None else (norm_weight,))))
    (tokens, width), experts = x.shape, gate.shape[0]
    rule.check(experts)
    out = out or empty_routed(x, rule, normalised=norm_weight is not None)
    scratch = scratch or RoutingScratch.of(tokens, experts, x.device)
    launch = launch or choose_route_launch(width)
    if launch.columns < width:
        raise InvalidSetting(f"the routing kernel takes a token in one step: {launch.columns} columns for {width}.")
    with on_device(x):
        route_kernel[(triton.cdiv(experts, launch.rows), tokens)](
            x, gate, norm_weight, correction, out.normed, scratch.logits, scratch.arrived, out.index, out.weight,
            x.stride(0), out.normed.stride(0), eps, rule.scale, rule.norm_floor,
            WIDTH=width, EXPERTS=experts, PADDED=triton.next_power_of_2(experts), TOP_K=rule.top_k, ROWS=launch.rows,
            COLUMNS=launch.columns, NORMED=norm_weight is not None, CORRECTED=correction is not None,
            SOFTMAX=rule.scoring == "softmax", NORMALISED=rule.normalise, GROUPS=rule.groups,
            TOP_GROUPS=rule.top_groups, num_warps=launch.warps, **overlapping(dependent),
        )  # fmt: skip
    return out


def empty_routed(x: torch.Tensor, rule: RoutingRule, *, normalised: bool) -> Routed:
    """Room for what `route` finds for such tokens."""
    index = torch.empty(x.shape[0], rule.top_k, dtype=torch.int32, device=x.device)
    weight = torch.empty(index.shape, dtype=rule.weight_dtype(x.dtype), device=x.device)
    return Routed(torch.empty_like(x, memory_format=torch.contiguous_format) if normalised else x, index, weight)
