"""The spiking form of a module: its neurons fitted to the values that its inputs were seen to reach."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

import torch
from torch import Tensor, nn

from inference_pio.anatomy.attention_kind import attention_shape
from inference_pio.anatomy.parts import is_experts, runs_attention
from inference_pio.errors import InvalidModel, InvalidSetting
from inference_pio.kernels.spikes import Code
from inference_pio.kernels.spiking_attention import Thresholds
from inference_pio.spiking.attention import SpikingAttention
from inference_pio.spiking.conv import SpikingConv2d
from inference_pio.spiking.experts import SpikingExperts
from inference_pio.spiking.linear import SpikingLinear
from inference_pio.spiking.module import SpikingModule

Reached = Callable[[str, float], Tensor | None]
"""`reached(name, but)`: what each channel [n] of an input reaches but for a share of its values; None: never seen."""
ROOM = 4.0
"""How far above all that was seen second neurons can tell at least."""
WIDE = 1.95
"""First neurons reach so many times what nearly all values do. On `qwen3` at 15 levels a value takes 1.06 spikes at 1,
and the perplexity ratio is 1.018 (docs/spiking.md)."""


def spiking_form(path: str, module: nn.Module, code: Code, but: float, reached: Reached | None) -> SpikingModule:
    """What stands in the place of a layer, or is added to an attention module; without `reached`, without values.

    First neurons tell all but the share `but` of what was seen. Raises InvalidModel for a module that has no such form,
    InvalidSetting where nothing is known of its inputs.
    """
    if is_experts(module):
        return _experts(path, module, code, but, reached)
    if runs_attention(module):
        return _attention(path, module, code, but, reached)
    if isinstance(module, nn.Conv2d):
        if reached is None:
            return SpikingConv2d.shaped(module, code)
        weight = module.weight.detach()
        weight = weight.view(module.groups, -1, *weight.shape[1:]).movedim(2, 1)  # [groups, in, out, H, W]
        seen = _seen(path, but, reached)
        threshold = balanced(*seen, _size(weight.flatten(0, 1), 0), code)
        return SpikingConv2d(module, threshold.to(module.weight.device), code)
    if reached is None:
        return SpikingLinear.shaped(module, code)
    weight = module.get_parameter("weight").detach()
    size = _size(weight, 1 if isinstance(module, nn.Linear) else 0)
    return SpikingLinear(module, balanced(*_seen(path, but, reached), size, code).to(weight.device), code)


def balanced(nearly: Tensor, largest: Tensor, size: Tensor, code: Code) -> Tensor:
    """Thresholds [..., n] of channels that reach `largest`, nearly all of their values `nearly`, where an error of a
    channel weighs `size` in what is computed from it.

    With second neurons every channel errs by as much as any other in what it leads to, and none is seen beyond what
    can be told. Without them each is told as finely as its largest value allows.

    >>> balanced(*torch.tensor([[1.0, 4.0], [2.0, 4.0], [1.0, 4.0]]), Code("radix", 1, second=True)).tolist()
    [7.8, 7.8]
    """
    alive = largest > 0
    if not code.second:
        found = largest / code.levels
    else:
        weighed = (nearly * size).clamp(min=torch.finfo(size.dtype).tiny)
        some = alive & (nearly > 0)
        middle = ((weighed.log() * some).sum(-1, keepdim=True) / some.sum(-1, keepdim=True).clamp(min=1)).exp()
        found = torch.maximum(WIDE * middle / size / code.levels, ROOM * largest / code.reach)
    ordinary = found.masked_fill(~alive, 0).sum(-1, keepdim=True) / alive.sum(-1, keepdim=True).clamp(min=1)
    return torch.where(alive, found, ordinary)  # one that was silent gets an ordinary one


def _experts(path: str, module: nn.Module, code: Code, but: float, reached: Reached | None) -> SpikingExperts:
    """An expert that no token reached is made ready for the largest that any other was given."""
    if reached is None:
        return SpikingExperts.shaped(module, code)
    gate_up, down = (module.get_parameter(name).detach() for name in ("gate_up_proj", "down_proj"))
    given = balanced(*_seen(f"{path}.gate_up", but, reached), _size(gate_up, 2), code)
    names = [f"{path}.down[{expert}]" for expert in range(len(down))]
    found = [[reached(name, share) for name in names] for share in (but, 0.0)]
    most = torch.stack([one for one in found[1] if one is not None]).amax()
    width = down.shape[-1]
    nearly, largest = (torch.stack([most.expand(width) if one is None else one for one in side]) for side in found)
    inner = balanced(nearly, largest, _size(down, 2, keep=(0,)), code)
    return SpikingExperts.from_experts(module, given.to(down.device), inner.to(down.device), code)


def _attention(path: str, module: nn.Module, code: Code, but: float, reached: Reached | None) -> SpikingAttention:
    """An error of a query's channel weighs as much as keys are large there, and the other way round."""
    device = next(chain(module.parameters(), module.buffers())).device
    if (shape := attention_shape(module)) is None:
        raise InvalidModel(f"{path}: the width of its heads cannot be told from its attributes.")
    if reached is None:
        return SpikingAttention.shaped(shape, code, device)
    query, key, value = (
        [side.view(shape.key_heads, -1, width).amax(1) for side in _seen(f"{path}.{name}", but, reached)]
        for name, width in (("query", shape.head_dim), ("key", shape.head_dim), ("value", shape.value_dim))
    )
    pairs = ((query, _weight_of(key[0])), (key, _weight_of(query[0])), (value, torch.ones_like(value[0])))
    made = [balanced(nearly, largest, size, code).to(device) for (nearly, largest), size in pairs]
    return SpikingAttention(Thresholds(*made), code)


def _seen(name: str, but: float, reached: Reached) -> tuple[Tensor, Tensor]:
    """What each channel nearly always stays below, and its largest value."""
    nearly, largest = reached(name, but), reached(name, 0.0)
    if largest is not None and not bool(largest.isfinite().all()):
        raise InvalidModel(
            f"{name} was given NaN or infinity in calibration: check the checkpoint. Nothing was touched."
        )
    if nearly is None or largest is None or not bool((largest > 0).any()):
        raise InvalidSetting(
            f"{name} was given nothing but zeros in calibration, so there is nothing to set thresholds by: "
            "give text or inputs that use it, or skip it."
        )
    return nearly, largest


def _size(weight: Tensor, dim: int, keep: tuple[int, ...] = ()) -> Tensor:
    """The length of what a channel of `dim` leads to, float64 on the CPU."""
    others = [one for one in range(weight.dim()) if one != dim and one not in keep]
    return _weight_of(weight.double().square().sum(others).sqrt().cpu())


def _weight_of(size: Tensor) -> Tensor:
    """No channel weighs nothing."""
    return torch.maximum(size, 1e-3 * size.mean(-1, keepdim=True)).clamp(min=1e-30)
