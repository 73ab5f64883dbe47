"""The largest values that each channel reaches over the calibration batches: of layers' inputs, and of attention's."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inference_pio.anatomy.parts import is_experts
from inference_pio.calibration.expert_inputs import DOWN, GATE_UP, routed, rows_by_expert
from inference_pio.calibration.forward import Progress, forward
from inference_pio.calibration.left_as_found import left_as_found
from inference_pio.calibration.source import CalibrationSource
from inference_pio.compat import ATTENTION_KEY, add_attention_function, library_attention
from inference_pio.errors import InvalidSetting
from inference_pio.undo.journal import Journal
from inference_pio.undo.transaction import Transaction
from inference_pio.undo.vault import Vault

KEPT = 64
"""Values that are kept of each channel: what all but a thousandth of 64,000 tokens stay below is among them."""
WATCHING = "inference_pio_watching"
_WATCHERS: dict[int, Callable[..., None]] = {}
Note = Callable[..., None]
"""`note(name, rows, given)`: rows [n, channels], and the tensor that they are a view of, if layers may share it."""


class Largest:
    """The largest magnitudes of each of so many channels.

    >>> largest = Largest(2)
    >>> largest.add(torch.tensor([[1.0, -4.0], [2.0, 3.0]]))
    >>> largest.reached().tolist(), largest.reached(but=0.5).tolist(), largest.count
    ([2.0, 4.0], [1.0, 3.0], 2)
    """

    def __init__(self, channels: int) -> None:
        self.count = 0
        self._kept = torch.zeros(0, channels, dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        """Count rows [n, channels] in."""
        self.add_largest(largest_of(rows), rows.shape[0])

    def add_largest(self, largest: Tensor, count: int) -> None:
        """Count in so many rows of which the largest are known."""
        self.count += count
        both = torch.cat([self._kept, largest.double().cpu()])
        self._kept = both.topk(min(KEPT, len(both)), dim=0).values

    def reached(self, but: float = 0.0) -> Tensor:
        """What each channel reaches [channels], float64; `but` is the share of values that may lie above."""
        return self._kept[min(math.ceil(self.count * but), len(self._kept) - 1)]


def largest_of(rows: Tensor) -> Tensor:
    """The KEPT largest magnitudes of each channel among rows [n, channels], in any order."""
    size = rows.detach().abs()
    if len(size) <= KEPT:
        return size
    if size.is_cuda:
        return size.topk(KEPT, dim=0).values
    columns = size.float().T.contiguous().numpy()  # on a CPU topk takes 30 ms for 512 rows of 1536, this takes 4.5
    return torch.from_numpy(np.partition(columns, len(size) - KEPT, axis=1)[:, -KEPT:].copy()).T


def collect_largest(
    model: nn.Module, source: CalibrationSource, layers: Sequence[str], attention: Sequence[str] = (),
    progress: Progress | None = None,
) -> dict[str, Largest]:  # fmt: skip
    """Run every batch once. By path: what linear layers and convolutions are given; of fused experts `path.gate_up`
    for all and `path.down[e]` for those that saw a token; of attention `path.query`, `path.key` and `path.value`, their
    channels head by head. The model is as before. Raises InvalidSetting for a place that no batch reaches.
    """
    found: dict[str, Largest] = {}

    last: list[tuple[Tensor, Tensor]] = []

    def note(name: str, rows: Tensor, given: Tensor | None = None) -> None:
        if given is None or not last or last[0][0] is not given:  # layers that are given one tensor share the work
            last[:] = [(rows if given is None else given, largest_of(rows))]
        found.setdefault(name, Largest(rows.shape[-1])).add_largest(last[0][1], rows.shape[0])

    with left_as_found(model), ExitStack() as stack:
        for path in layers:
            stack.enter_context(_watched_layer(path, model.get_submodule(path), note))
        stack.enter_context(_watched_attention(model, attention, note))
        for number, batch in enumerate(source.batches):
            forward(model, batch)
            if progress:
                progress("calibration", (number + 1) / len(source.batches))
    expected = [f"{path}.gate_up" if is_experts(model.get_submodule(path)) else path for path in layers]
    expected += [f"{path}.query" for path in attention]
    if unseen := [name for name in expected if name not in found or not found[name].count]:
        more = f" and {len(unseen) - 3} more" if len(unseen) > 3 else ""
        raise InvalidSetting(
            f"no calibration batch reaches {', '.join(unseen[:3])}{more}, so there is nothing to set thresholds by: "
            "give text or inputs that use them, or leave them out."
        )
    return found


@contextmanager
def _watched_layer(path: str, module: nn.Module, note: Note) -> Iterator[None]:
    def layer(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        given = args[0] if args else next(iter(kwargs.values()))
        rows = given.movedim(-3, -1) if isinstance(module, nn.Conv2d) else given
        note(path, rows.flatten(0, -2), None if isinstance(module, nn.Conv2d) else given)

    def fused(experts: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        hidden, chosen = routed(args, kwargs)
        gate_up, down = (getattr(experts, name) for name in (GATE_UP, DOWN))
        for expert, given in rows_by_expert(hidden, chosen, down.shape[0], None):
            note(f"{path}.gate_up", given)
            note(f"{path}.down[{expert}]", experts._apply_gate(F.linear(given, gate_up[expert])))  # type: ignore[operator]

    handle = module.register_forward_pre_hook(fused if is_experts(module) else layer, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _watched_attention(model: nn.Module, paths: Sequence[str], note: Note) -> Iterator[None]:
    """Let attention pass by `note`, through a journal of its own that is taken back at the end."""
    add_attention_function(WATCHING, _watching)
    modules = {path: model.get_submodule(path) for path in paths}
    journal = Journal(model, Vault("host"))
    try:
        with journal.step("watch attention"):
            for path, module in modules.items():
                own: Any = copy.copy(module.config)
                vars(own)[ATTENTION_KEY] = WATCHING
                journal.set(module, "config", own)
                _WATCHERS[id(module)] = functools.partial(_note_heads, path, note)
        yield
    finally:
        for module in modules.values():
            _WATCHERS.pop(id(module), None)
        transaction = Transaction(journal)
        transaction.undo(list(journal.frames))
        transaction.commit()


def _note_heads(path: str, note: Note, **tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        note(f"{path}.{name}", tensor.transpose(1, 2).flatten(2).flatten(0, 1))


def _watching(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **rest: Any
) -> tuple[Tensor, None]:
    _WATCHERS[id(module)](query=query, key=key, value=value)
    return library_attention()(module, query, key, value, attention_mask, **rest)  # type: ignore[no-any-return]
