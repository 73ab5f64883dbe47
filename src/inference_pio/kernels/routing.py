"""Which experts a token goes to, and how much each of them counts: normalise, score, choose; the plain truth first.

Shapes: M tokens `x` [M, H], a router `gate` [E, H], k chosen experts a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F

from inference_pio.errors import InvalidSetting

SCORINGS = ("softmax", "sigmoid")


@dataclass(frozen=True)
class RoutingRule:
    """How a router's logits become choice and weights.

    "softmax": logits are a product in the dtype of the tokens, weights end in it. "sigmoid": all of it is float32, a
    correction may move the choice (never the weights), and only experts of the best `top_groups` of `groups` are
    chosen among. `normalise` divides by the sum of the chosen scores plus `norm_floor`; `scale` multiplies at the end.
    """

    top_k: int
    scoring: str = "softmax"
    normalise: bool = True
    scale: float = 1.0
    groups: int = 1
    top_groups: int = 1
    norm_floor: float = 0.0

    def __post_init__(self) -> None:
        if self.scoring not in SCORINGS:
            raise InvalidSetting(f"a router scores by {' or '.join(SCORINGS)}, and not by {self.scoring!r}.")
        if self.top_k < 1 or not 1 <= self.top_groups <= self.groups:
            raise InvalidSetting(f"no router chooses top_k={self.top_k} of {self.top_groups} of {self.groups} groups.")

    @property
    def grouped(self) -> bool:
        """Whether some groups of experts are left out."""
        return self.top_groups < self.groups

    def weight_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype of the weights of tokens of `dtype`.

        >>> RoutingRule(8).weight_dtype(torch.bfloat16), RoutingRule(8, "sigmoid").weight_dtype(torch.bfloat16)
        (torch.bfloat16, torch.float32)
        """
        return dtype if self.scoring == "softmax" else torch.float32

    def check(self, experts: int) -> None:
        """Raise InvalidSetting where so many experts cannot be chosen among like this."""
        size = experts // self.groups
        if experts % self.groups or self.top_k > size * self.top_groups or (self.grouped and size < 2):
            raise InvalidSetting(
                f"top_k={self.top_k} of {self.top_groups} of {self.groups} groups does not go with {experts} experts: "
                "groups are alike and of two or more, and hold what is chosen."
            )


class Routed(NamedTuple):
    """The tokens as the router saw them [M, H], and the experts of each with their weights, [M, k]."""

    normed: torch.Tensor
    index: torch.Tensor
    weight: torch.Tensor


def naive_route(
    x: torch.Tensor,
    gate: torch.Tensor,
    rule: RoutingRule,
    *,
    correction: torch.Tensor | None = None,
    norm_weight: torch.Tensor | None = None,
    eps: float = 0.0,
) -> Routed:
    """The definition, in float32 without any rounding on the way; chosen experts by falling score, then by number."""
    x = x.float()
    if norm_weight is not None:
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * norm_weight.float()
    logits = x @ gate.float().T
    scores = logits.softmax(-1) if rule.scoring == "softmax" else logits.sigmoid()
    choice = scores if correction is None else scores + correction
    if rule.grouped:
        by_group = choice.unflatten(-1, (rule.groups, -1))
        order = by_group.sort(-1, descending=True).values[..., :2].sum(-1).sort(dim=-1, descending=True, stable=True)
        outside = torch.ones_like(by_group, dtype=torch.bool)
        outside.scatter_(-2, order.indices[..., : rule.top_groups, None].expand(-1, -1, by_group.shape[-1]), False)
        choice = choice.masked_fill(outside.flatten(-2), float("-inf"))
    index = choice.sort(dim=-1, descending=True, stable=True).indices[:, : rule.top_k]
    weight = scores.gather(-1, index)
    if rule.normalise:
        weight = weight / (weight.sum(-1, keepdim=True) + rule.norm_floor)
    return Routed(x, index, weight * rule.scale)


def route(
    x: torch.Tensor,
    gate: torch.Tensor,
    rule: RoutingRule,
    *,
    correction: torch.Tensor | None = None,
    norm_weight: torch.Tensor | None = None,
    eps: float = 0.0,
    out: Routed | None = None,
) -> Routed:
    """The same with the library's operations in the library's order, so with its bits; the index is int64.

    Without a `norm_weight` the tokens are taken as they are. Of equal scores `torch.topk` takes any.
    """
    rule.check(gate.shape[0])
    normed = x if norm_weight is None else _normed(x, norm_weight, eps)
    index, weight = _softmax(normed, gate, rule) if rule.scoring == "softmax" else _sigmoid(
        normed, gate, rule, correction
    )  # fmt: skip
    found = Routed(normed, index, weight)
    return found if out is None else Routed(*(one.copy_(got) for one, got in zip(out, found, strict=True)))


def _normed(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    wide = x.to(torch.float32)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


def _softmax(x: torch.Tensor, gate: torch.Tensor, rule: RoutingRule) -> tuple[torch.Tensor, torch.Tensor]:
    logits = F.linear(x, gate)
    weight, index = F.softmax(logits, dtype=torch.float32, dim=-1).topk(rule.top_k, dim=-1)
    if rule.normalise:
        weight = weight / (weight.sum(-1, keepdim=True) + rule.norm_floor)
    return index, (weight * rule.scale).to(logits.dtype)


def _sigmoid(
    x: torch.Tensor, gate: torch.Tensor, rule: RoutingRule, correction: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    scores = F.linear(x.float(), gate.float()).sigmoid()
    choice = scores if correction is None else scores + correction
    if rule.grouped:
        by_group = choice.unflatten(-1, (rule.groups, -1))
        best = by_group.topk(2, dim=-1).values.sum(-1).topk(rule.top_groups, dim=-1, sorted=False).indices
        kept = torch.zeros(by_group.shape[:-1], dtype=torch.bool, device=x.device).scatter_(-1, best, True)
        choice = by_group.masked_fill(~kept[..., None], float("-inf")).flatten(-2)
    index = choice.topk(rule.top_k, dim=-1, sorted=False).indices
    weight = scores.gather(1, index)
    if rule.normalise:
        weight = weight / (weight.sum(-1, keepdim=True) + rule.norm_floor)
    return index, weight * rule.scale
