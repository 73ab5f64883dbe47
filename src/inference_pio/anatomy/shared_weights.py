"""Weights that several modules hold: what changes them for one would change or untie them for the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from torch import Tensor, nn


def shared_weights(model: nn.Module) -> set[int]:
    """The ids of the Parameters that more than one module of a model holds.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> model[1].weight = model[0].weight
    >>> shared_weights(model) == {id(model[0].weight)}
    True
    """
    holders: Counter[int] = Counter()
    for module in model.modules():
        holders.update(id(parameter) for parameter in module._parameters.values() if parameter is not None)
    return {key for key, count in holders.items() if count > 1}


def why_shared(weights: Iterable[Tensor], shared: set[int]) -> str | None:
    """Why some weights are kept as they are, or None: another module holds one of them too."""
    return "it shares its weights with another module" if any(id(one) in shared for one in weights) else None
