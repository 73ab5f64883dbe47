"""Gradients that come out the same each time: rows that several threads add up are added in their order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from inference_pio.compat import operations_go_through, row_puts


def in_order() -> AbstractContextManager[None]:
    """A context in which, on this thread alone, rows are added where an index says so, one behind another.

    On a CPU the gradient of `x[rows]`, which is how experts take their tokens, is added up by several threads in the
    order in which they come: two calibrations on one text differed in their last bits.

    >>> x = torch.ones(2, 3, requires_grad=True)
    >>> with in_order():
    ...     torch.autograd.grad(x[torch.tensor([1, 1, 0])].sum(), x)
    (tensor([[1., 1., 1.],
            [2., 2., 2.]]),)
    """
    through: AbstractContextManager[None] = operations_go_through(_with_rows_in_order)
    return through


def _with_rows_in_order(operation: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    if operation not in row_puts() or not _adds_whole_rows(*args):
        return operation(*args, **kwargs)
    into, (index,), rows = args[:3]
    add = into.index_add_ if row_puts()[operation] else into.index_add
    return add(0, index.long() % len(into), rows)  # as an index's, these may count from behind


def _adds_whole_rows(into: Tensor, indices: Sequence[Tensor | None], rows: Tensor, adds: bool = False, *_: Any) -> bool:
    """Whether one index says where each row goes, on a CPU; a mask of truths says it otherwise."""
    index = indices[0]
    if not adds or into.device.type != "cpu" or len(indices) != 1 or index is None or index.dim() != 1:
        return False
    whole = rows.dtype is into.dtype and rows.shape == (len(index), *into.shape[1:])
    return whole and index.dtype in (torch.int64, torch.int32)
