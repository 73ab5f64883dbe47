"""Layers in groups, in the model's order, so that the statistics of one group fit into a budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from inference_pio.anatomy.parts import widths
from inference_pio.calibration.input_statistics import statistics_bytes


@dataclass(frozen=True)
class Watched:
    """A layer whose input is watched."""

    path: str
    module: nn.Module
    role: str

    @property
    def is_experts(self) -> bool:
        return widths(self.module) is None

    @property
    def shares_with(self) -> tuple[str, str, int]:
        """Layers of one parent, role and width are most often given the same tensor, and then share one answer."""
        return self.path.rpartition(".")[0], self.role, self.widths[0]

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths of the inputs that are summed for this layer: one, or two for each expert."""
        if (sizes := widths(self.module)) is not None:
            return (sizes[0],)
        stacks = {name: tensor for name, tensor in self.module.named_parameters(recurse=False) if tensor.dim() == 3}
        count = next(iter(stacks.values())).shape[0]
        return tuple(tensor.shape[-1] for tensor in stacks.values()) * count


def groups_within(watched: Sequence[Watched], gram: bool, budget_bytes: int) -> Iterator[list[Watched]]:
    """Consecutive layers whose sums take at most `budget_bytes`, one layer at least."""
    group: list[Watched] = []
    counted: set[tuple[str, str, int]] = set()
    taken = 0
    for one in watched:
        need = sum(statistics_bytes(width, gram) for width in one.widths)
        need = 0 if one.shares_with in counted else need
        if group and taken + need > budget_bytes:
            yield group
            group, counted, taken = [], set(), 0
            need = sum(statistics_bytes(width, gram) for width in one.widths)
        group.append(one)
        counted.add(one.shares_with)
        taken += need
    if group:
        yield group
