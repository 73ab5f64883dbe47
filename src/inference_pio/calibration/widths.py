"""How many channels each module keeps, so that a share of all parameters goes where it costs least."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor


@dataclass(frozen=True)
class Curve:
    """What the channels of a module cost: `losses` [width] in the order in which they go, in a unit that all modules
    share, and the `parameters` of one. Widths are multiples of `align`.
    """

    losses: Tensor
    parameters: int
    align: int = 1

    @property
    def width(self) -> int:
        return len(self.losses)


def allocate_widths(curves: Mapping[str, Curve], ratio: float) -> dict[str, int]:
    """Widths by path, with which `ratio` of the parameters of all channels goes, or little more.

    What loses least for a parameter goes first, `align` channels at a time; a module keeps that many at least.

    >>> import torch
    >>> steep, flat = Curve(torch.arange(8.0), 1, align=2), Curve(torch.full((8,), 0.5), 1, align=2)
    >>> allocate_widths({"a": steep, "b": flat}, ratio=0.5)
    {'a': 6, 'b': 2}
    """
    wanted = ratio * sum(one.width * one.parameters for one in curves.values())
    blocks = []
    for path, one in curves.items():
        cost = 0.0
        for before, after in pairwise([one.width, *range((one.width - 1) // one.align * one.align, 0, -one.align)]):
            lost = float(one.losses[one.width - before : one.width - after].sum())
            cost = max(cost, lost / ((before - after) * one.parameters))  # what goes later is never the cheaper
            blocks.append((cost, path, after, (before - after) * one.parameters))
    widths, gone = {path: one.width for path, one in curves.items()}, 0
    for _, path, after, parameters in sorted(blocks, key=lambda block: block[0]):
        if gone >= wanted:
            break
        widths[path], gone = after, gone + parameters
    return widths
