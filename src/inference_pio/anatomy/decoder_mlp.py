"""The MLPs of a decoder in their parts: gated ones, and mixtures of experts with or without a shared one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from inference_pio.anatomy.parts import is_adapted, is_experts, weights_of, widths
from inference_pio.kernels.routing import RoutingRule

GATE, UP, DOWN = "gate_proj", "up_proj", "down_proj"
ROUTER, EXPERTS, SHARED = "gate", "experts", "shared_experts"
CORRECTION = "e_score_correction_bias"
SIGMOID_FLOOR = 1e-20
"""What the library adds to the sum by which it divides the weights of sigmoid routers."""


@dataclass(frozen=True)
class GatedMlp:
    """`down(silu(gate(x)) * up(x))`."""

    module: nn.Module
    gate: nn.Module
    up: nn.Module
    down: nn.Module


@dataclass(frozen=True)
class Mixture:
    """`rule.top_k` of the experts for each token, weighed by a router, and perhaps a shared one for all."""

    module: nn.Module
    router: nn.Module
    rule: RoutingRule
    experts: nn.Module
    shared: GatedMlp | None

    @property
    def correction(self) -> torch.Tensor | None:
        """What is added to the scores for the choice alone, float32 [experts]."""
        return self.router._buffers.get(CORRECTION)


def mlp_parts(module: nn.Module) -> GatedMlp | Mixture | str:
    """An MLP in its parts, or why it is not made of known ones.

    >>> mlp_parts(nn.Linear(2, 2))
    'Linear is neither a gated MLP nor a mixture of experts'
    """
    children = dict(module.named_children())
    if {GATE, UP, DOWN} <= children.keys():
        return _gated(module, children)
    if {ROUTER, EXPERTS} <= children.keys():
        return _mixture(module, children)
    return f"{type(module).__name__} is neither a gated MLP nor a mixture of experts"


def _gated(module: nn.Module, children: dict[str, nn.Module]) -> GatedMlp | str:
    named = type(module).__name__
    layers = [children.pop(name) for name in (GATE, UP, DOWN)]
    if any(is_adapted(layer) for layer in layers):
        return f"an adapter is wrapped around a layer of {named}"
    sizes = [widths(layer) for layer in layers]
    gate, up, down = sizes
    if gate is None or gate != up or down != gate[::-1] or weights_of(module):
        return f"the widths of {named}'s layers do not fit each other"
    if any(weights_of(child) for child in children.values()):
        return f"{named} holds more weights than a gated MLP"
    if not is_silu(getattr(module, "act_fn", None)):
        return f"{named} does not gate by SiLU"
    return GatedMlp(module, *layers)


def is_silu(function: object) -> bool:
    """Whether a function is SiLU, told by what it computes.

    >>> is_silu(nn.SiLU()), is_silu(torch.relu), is_silu(None)
    (True, False, False)
    """
    if not callable(function):
        return False
    x = torch.linspace(-3, 3, 13)
    found = function(x)
    return isinstance(found, torch.Tensor) and found.is_cpu and torch.allclose(found, x * torch.sigmoid(x))


def _mixture(module: nn.Module, children: dict[str, nn.Module]) -> Mixture | str:
    router, experts, shared = children.pop(ROUTER), children.pop(EXPERTS), children.pop(SHARED, None)
    named = type(module).__name__
    if children or weights_of(module) or not is_experts(experts):
        return f"{named} is not a router, fused experts and a shared expert"
    rule = _rule(router)
    if isinstance(rule, str):
        return rule
    if weights_of(router)["weight"].shape[0] not in {tensor.shape[0] for tensor in weights_of(experts).values()}:
        return f"the router of {named} knows other experts than there are"
    parts = mlp_parts(shared) if shared is not None else None
    if isinstance(parts, str | Mixture):
        return f"the shared expert of {named} is no gated MLP"
    return Mixture(module, router, rule, experts, parts)


def _rule(router: nn.Module) -> RoutingRule | str:
    """A router's rule by its attributes; whether it computes so is checked on numbers elsewhere."""
    top_k, named = getattr(router, "top_k", None), type(router).__name__
    weights = weights_of(router)
    if not isinstance(top_k, int) or weights.keys() != {"weight"} or not hasattr(router, "norm_topk_prob"):
        return f"{named} is a router of another kind than those known"
    normalise = bool(router.norm_topk_prob)
    if CORRECTION not in router._buffers:
        return RoutingRule(top_k, "softmax", normalise)
    groups, taken = getattr(router, "num_group", None), getattr(router, "topk_group", None)
    scale = getattr(router, "routed_scaling_factor", None)
    if not isinstance(groups, int) or not isinstance(taken, int) or not isinstance(scale, int | float):
        return f"{named} is a router of another kind than those known"
    return RoutingRule(top_k, "sigmoid", normalise, float(scale), groups, taken, SIGMOID_FLOOR)
