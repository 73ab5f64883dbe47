"""The norms of a decoder: root mean square, with a weight."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

EPSILON = ("variance_epsilon", "eps")


@dataclass(frozen=True)
class Norm:
    """`module` scales rows to a root mean square of one, `eps` under the root, and multiplies with its weight."""

    module: nn.Module
    eps: float

    @property
    def weight(self) -> torch.Tensor:
        weight: torch.Tensor = self.module.weight  # type: ignore[assignment]
        return weight


def norm_of(module: nn.Module) -> Norm | str:
    """A norm by what it holds, or why it is none that is known; what it computes is checked on numbers elsewhere.

    >>> norm_of(nn.LayerNorm(3))
    'LayerNorm is no root-mean-square norm with a weight and nothing else'
    """
    eps = next((value for name in EPSILON if isinstance(value := getattr(module, name, None), float)), None)
    weights = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
    if eps is None or weights.keys() != {"weight"} or weights["weight"].dim() != 1 or list(module.children()):
        return f"{type(module).__name__} is no root-mean-square norm with a weight and nothing else"
    return Norm(module, eps)
