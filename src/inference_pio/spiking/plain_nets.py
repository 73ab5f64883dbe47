"""Nets that are no language models: which of them spike, told by the activations between their layers."""

from __future__ import annotations

from torch import nn

from inference_pio.anatomy.walk import attention_modules

FIRING = (nn.ReLU, nn.ReLU6, nn.Identity)
"""What neurons do by themselves: they do not fire below zero, or tell a number as it is."""


def why_no_spiking_net(model: nn.Module) -> str | None:
    """Why the layers of a plain net are not converted; None for one that may be, and for a language model.

    >>> print(why_no_spiking_net(nn.Sequential(nn.Linear(2, 2), nn.ReLU())))
    None
    >>> why_no_spiking_net(nn.Sequential(nn.Linear(2, 2), nn.Tanh()))
    'neurons that integrate and fire compute ReLU, and 1 is a Tanh'
    """
    if next(attention_modules(model), None) is not None:
        return None
    for path, module in model.named_modules():
        if type(module).__module__ == nn.ReLU.__module__ and not isinstance(module, FIRING):
            return f"neurons that integrate and fire compute ReLU, and {path or 'it'} is a {type(module).__name__}"
    return None


def host_operations(model: nn.Module, converted: type[nn.Module]) -> list[str]:
    """The kinds of modules without children that compute as they did, beside those of a `converted` kind."""
    left = {
        type(module).__name__
        for module in model.modules()
        if not isinstance(module, converted) and not any(True for _ in module.children())
    }
    return sorted(left)
