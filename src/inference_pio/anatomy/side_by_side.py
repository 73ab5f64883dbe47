"""Linear layers that are given one and the same tensor, told by their names under one parent."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from inference_pio.anatomy.parts import widths

TOGETHER = (
    frozenset({"q_proj", "k_proj", "v_proj", "q_a_proj", "kv_a_proj_with_mqa"}),
    frozenset({"gate_proj", "up_proj"}),
)
"""Names of layers that the library gives one tensor, where one module holds several of them."""
QUERIES = "q_proj"
OTHER_STATES = frozenset({"key_value_states", "encoder_hidden_states", "cross_attention_states"})
"""What a forward calls the states that keys and values are made of in the place of those that queries are made of."""


@dataclass(frozen=True)
class SideBySide:
    """Layers of one input: their paths, and their widths out."""

    paths: tuple[str, ...]
    inputs: int
    outputs: tuple[int, ...]

    @property
    def name(self) -> str:
        """The path of the first, by which all are known."""
        return self.paths[0]

    @property
    def numbers(self) -> int:
        """How many numbers their weights hold."""
        return self.inputs * sum(self.outputs)

    def weight(self, model: nn.Module) -> Tensor:
        """Their weights, one above the other: [sum of outputs, inputs]."""
        return torch.cat([weight_of(model.get_submodule(path)) for path in self.paths])


def side_by_side(model: nn.Module, paths: Iterable[str]) -> list[SideBySide]:
    """The linear layers at `paths`, those of one input together, in the order given.

    >>> class Block(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.q_proj, self.o_proj, self.k_proj = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
    >>> [one.paths for one in side_by_side(Block(), ["q_proj", "o_proj", "k_proj"])]
    [('q_proj', 'k_proj'), ('o_proj',)]
    """
    found: dict[Any, list[str]] = {}
    sizes: dict[str, tuple[int, int]] = {}
    for path in paths:
        sizes[path] = widths(model.get_submodule(path)) or (0, 0)
        parent, _, last = path.rpartition(".")
        kind = next((number for number, names in enumerate(TOGETHER) if last in names), None)
        alone = kind is None or (last == QUERIES and _takes_other_states(model.get_submodule(parent)))
        key = path if alone else (parent, kind, sizes[path][0])
        found.setdefault(key, []).append(path)
    return [
        SideBySide(tuple(group), sizes[group[0]][0], tuple(sizes[path][1] for path in group))
        for group in found.values()
    ]


def _takes_other_states(attention: nn.Module) -> bool:
    return not OTHER_STATES.isdisjoint(inspect.signature(type(attention).forward).parameters)


def weight_of(linear: nn.Module) -> Tensor:
    """The weight of a linear layer as [out, in], whichever way it keeps it."""
    weight: Tensor = linear.weight.detach()  # type: ignore[union-attr, operator]
    return weight.t() if isinstance(linear, Conv1D) else weight
