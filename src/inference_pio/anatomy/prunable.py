"""What may become smaller in a model: a module, its units of one kind, and every number that tells how many."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

Weights = dict[str, Tensor]
"""Parameters and buffers by their names within a module."""


@dataclass(frozen=True)
class Prunable:
    """A module that holds `width` units of the kind `unit`, some of which may go."""

    path: str
    module: nn.Module
    unit: str
    width: int
    told_by: ClassVar[tuple[str, ...]] = ()
    """Under which names modules tell how many there are."""

    @property
    @abstractmethod
    def weights(self) -> dict[str, Any]:
        """The Parameters and buffers that hold the units, by their names within the module."""

    @abstractmethod
    def first(self, width: int) -> Weights:
        """The weights of the first units alone: shapes to come, or all that there is where it is narrow already."""

    @abstractmethod
    def told(self, config: object, width: int) -> dict[str, int]:
        """What a configuration says otherwise with `width` units, by name; {} for one that says nothing of it."""

    def numbers(self, width: int) -> Iterator[tuple[nn.Module, str, int]]:
        """The modules, attributes and values that tell how many there are."""
        for module in self.module.modules():
            for name in self.told_by:
                if vars(module).get(name) == self.width:
                    yield module, name, width

    @property
    def nbytes(self) -> int:
        return sum(weight.nbytes for weight in self.weights.values())


@dataclass(frozen=True)
class ReadUnits(Prunable):
    """Units whose outputs one linear layer reads, or one for each of `copies`; it can make up for those that go."""

    @property
    @abstractmethod
    def down(self) -> str:
        """The path of what reads them."""

    @property
    @abstractmethod
    def down_name(self) -> str:
        """The name of the weight that reads them."""

    @property
    def stacked(self) -> bool:
        """Whether it holds many matrices in one tensor, each with units of its own."""
        return False

    @property
    def block(self) -> int:
        """How many inputs of the layer one unit is."""
        return 1

    @property
    def down_weights(self) -> Tensor:
        """What reads the units, [copies, out, width * block]."""
        found: Tensor = self.weights[self.down_name].detach()
        return found if self.stacked else found[None]

    @property
    def copies(self) -> int:
        return len(self.down_weights)

    @abstractmethod
    def narrowed(self, kept: Tensor, down: Tensor) -> Weights:
        """The weights with the units `kept` [copies, n] alone; `down` [copies, out, n * block] is what reads them."""

    def columns(self, kept: Tensor) -> Tensor:
        """The inputs [copies, n * block] of the layer that units [copies, n] are."""
        within = torch.arange(self.block, device=kept.device)
        return (kept[..., None] * self.block + within).flatten(1)

    def spread(self, kept: Tensor, down: Tensor) -> Tensor:
        """`down` [copies, out, n * block] over all inputs, nothing at those of units that are gone."""
        places = self.columns(kept)[:, None].expand(-1, down.shape[1], -1)
        return torch.zeros_like(self.down_weights).scatter(2, places, down)

    def first(self, width: int) -> Weights:
        down = self.down_weights
        kept = torch.arange(width, device=down.device).expand(len(down), -1)
        return self.narrowed(kept, down[..., : width * self.block])


def said_by(config: object, names: tuple[str, ...], before: int, after: int) -> dict[str, int]:
    """The entries of a configuration that say `before` under one of `names`, with `after` in its place."""
    held: Mapping[str, Any] = vars(config)
    return {name: after for name in names if isinstance(held.get(name), int) and held[name] == before != after}
