"""MLPs and mixtures of experts whose rows are computed piece by piece: what lies between their layers stays small."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from inference_pio.anatomy.blocks import mlp_children
from inference_pio.anatomy.call_guards import put_around, serves
from inference_pio.anatomy.parts import base_of, is_experts, within
from inference_pio.anatomy.pieces import PIECES, Pieces, pieces_of
from inference_pio.anatomy.roles import hidden_width
from inference_pio.compat import collects_outputs
from inference_pio.undo.journal import Journal

OTHER_SHAPE = "its output is not a row for each row"


def row_blocks(stack: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The outermost MLPs and mixtures of experts inside a decoder's stack: each computes a row from that row alone."""
    hidden, found = hidden_width(stack), list[str]()
    for path, module in stack.named_modules():
        if hidden and path and not any(within(path, above) for above in found) and _is_block(module, hidden):
            found.append(path)
            yield path, module


def _is_block(module: nn.Module, hidden: int) -> bool:
    mixture = any(is_experts(base_of(child)) for child in module.children())
    return mixture or bool(mlp_children(module, hidden))


def compute_rows_in_pieces(journal: Journal, block: nn.Module, tokens: int) -> None:
    """From now on, a block computes so many rows at a time."""
    journal.set(block, PIECES, Pieces(tokens))
    put_around(journal, block, rows_in_pieces)


def rows_in_pieces(
    self: nn.Module, inner: Callable[..., Any], given: tuple[Any, ...], named: dict[str, Any]
) -> Any:  # fmt: skip
    """The forward of such a block: by `inner`, what stood there before."""
    pieces, x = pieces_of(self), given[0] if given else None
    if pieces is None or not isinstance(x, Tensor) or x.dim() not in (2, 3):
        return inner(self, *given, **named)
    rows = x.reshape(-1, x.shape[-1])
    if len(rows) <= pieces.tokens:
        return inner(self, *given, **named)
    if reason := _why_whole(self, x, given, named):
        pieces.left[reason] += 1
        return inner(self, *given, **named)
    out = _joined(lambda part: inner(self, part[None] if x.dim() == 3 else part), rows, pieces)
    if out is None:
        pieces.left[OTHER_SHAPE] += 1
        return inner(self, *given, **named)
    pieces.cut(-(-len(rows) // pieces.tokens))
    return out.view(*x.shape[:-1], out.shape[-1])


def _why_whole(block: nn.Module, x: Tensor, given: tuple[Any, ...], named: dict[str, Any]) -> str | None:
    if len(given) != 1 or named:
        return "it is called with more than its input"
    if not serves(block, x):
        return "gradients are recorded, or it is training"
    return "the library collects what is inside it" if collects_outputs() else None


def _joined(compute: Callable[[Tensor], Any], rows: Tensor, pieces: Pieces) -> Tensor | None:
    """All pieces, one behind the other in one tensor; None where the first is not a row for each row."""
    out: Tensor | None = None
    for begin in range(0, len(rows), pieces.tokens):
        part = rows[begin : begin + pieces.tokens]
        made = compute(part)
        if out is None:
            if not isinstance(made, Tensor) or made.numel() != made.shape[-1] * len(part):
                return None
            out = torch.empty(len(rows), made.shape[-1], dtype=made.dtype, device=made.device)
        out[begin : begin + len(part)].copy_(made.view(len(part), -1))
        del made  # the next piece takes its room
    return out
