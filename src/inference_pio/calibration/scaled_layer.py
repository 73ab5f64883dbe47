"""A layer, a norm, a router or fused experts with scales in their weights, beside the original."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from inference_pio.calibration.expert_inputs import DOWN, GATE_UP
from inference_pio.undo.journal import Journal


@dataclass(frozen=True)
class Scales:
    """Inputs come divided by `columns` [K], results leave divided by `rows` [N].

    `inner` [E, I] is what experts divide the results of up by, and multiply down's columns with.
    """

    columns: Tensor | None = None
    rows: Tensor | None = None
    inner: Tensor | None = None


def scaled(module: nn.Module, scales: Scales, dtype: torch.dtype | None = None) -> nn.Module:
    """A module that computes with other weights what this one computes, up to those scales; it has no hooks.

    Matrices are of `dtype` where one is given, so that nothing is rounded before they are.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> twin = scaled(layer, Scales(columns=torch.tensor([2.0, 1.0]), rows=torch.tensor([4.0])))
    >>> torch.equal(twin.weight, layer.weight * torch.tensor([0.5, 0.25]))
    True
    """
    twin = type(module).__new__(type(module))
    nn.Module.__init__(twin)
    hooks = {key: value for key, value in vars(twin).items() if "hooks" in key}
    twin.__dict__.update({**vars(module), **hooks, "_parameters": {}})
    for name, parameter in module._parameters.items():
        twin._parameters[name] = None if parameter is None else _with_scales(name, parameter, scales, dtype)
    return twin


def _with_scales(name: str, parameter: nn.Parameter, scales: Scales, dtype: torch.dtype | None) -> nn.Parameter:
    factor = _factor(name, parameter, scales)
    if factor is None:
        return parameter
    held = dtype if dtype is not None and parameter.dim() > 1 else parameter.dtype
    return nn.Parameter((parameter.detach().float() * factor).to(held), parameter.requires_grad)


def _factor(name: str, parameter: nn.Parameter, scales: Scales) -> Tensor | None:
    """What a tensor is multiplied with; None where it is left as it is."""
    columns, rows, inner = (
        None if scale is None else scale.to(parameter.device, torch.float32)
        for scale in (scales.columns, scales.rows, scales.inner)
    )
    if name == DOWN:
        return None if inner is None else inner[:, None, :]
    if name == GATE_UP and inner is not None:
        up = torch.cat([torch.ones_like(inner), 1 / inner], 1)[:, :, None]
        return up if columns is None else columns * up
    if parameter.dim() == 1:  # a norm's weight, or a bias
        return None if rows is None else 1 / rows
    if rows is None:
        return columns
    return 1 / rows[:, None] if columns is None else columns / rows[:, None]


def held_scales(weight: Tensor, scales: Tensor) -> Tensor:
    """Scales as a norm's weight can hold them: the weight over what its dtype makes of the weight divided by them.

    >>> held_scales(torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([1.001]))
    tensor([1.])
    """
    full = weight.detach().float()
    held = (full / scales.to(full.device, torch.float32)).to(weight.dtype).float()
    return torch.where((held == 0) | (full == 0), torch.ones_like(full), full / held)


def replace_parameters(journal: Journal, module: nn.Module, twin: nn.Module) -> None:
    """Put those Parameters of a twin into a module that are not its own."""
    for name, parameter in twin._parameters.items():
        if parameter is not module._parameters[name]:
            journal.set(module, name, parameter)
