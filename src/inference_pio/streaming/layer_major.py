"""Many batches through a model layer by layer: all of them through one, then all through the next."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from inference_pio.anatomy.decoder_stack import decoder_stack
from inference_pio.anatomy.walk import attention_modules, parent_of, path_of
from inference_pio.errors import InvalidModel
from inference_pio.undo.journal import Journal
from inference_pio.undo.transaction import Transaction
from inference_pio.undo.vault import Vault

Result = TypeVar("Result")
Progress = Callable[[str, float], None]


@dataclass
class Call:
    """What a layer is called with besides hidden states, held on the host."""

    rest: tuple[Any, ...]
    named: dict[str, Any]


class StandIn(nn.Module):
    """In the place of a layer: it notes what the layer would be called with, and gives back what it is told to.

    Whatever else is asked of it is asked of the layer, which is no part of it.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.__dict__["layer"] = layer
        self.given: Tensor | None = None
        self.call: Call | None = None
        self.result: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["layer"], name)

    def forward(self, hidden: Tensor, *rest: Any, **named: Any) -> Tensor:
        self.given, self.call = hidden, Call(rest, named)
        return hidden if self.result is None else self.result


def run_layer_major(
    model: nn.Module, batches: Iterable[Mapping[str, Any]], each: Callable[[int, Any], Result], *,
    progress: Progress | None = None,
) -> list[Result]:  # fmt: skip
    """What `each(number, output)` makes of the output of every batch: that of `model(**batch, use_cache=False)`.

    A layer is called for all batches before the next, so weights that are brought for it are brought once. Between
    layers, hidden states lie on the host. What stands before, between and behind the layers is the model's own
    forward, twice, with stand-ins for them. Raises InvalidModel where layers are not called one behind the other.
    """
    found = decoder_stack(model)
    if isinstance(found, str):
        raise InvalidModel(f"{type(model).__name__} cannot be run layer by layer: {found}.")
    given, device = [dict(batch) for batch in batches], _device_of(model)
    layers = _layers(found[1])
    with torch.no_grad():
        with _stood_in(model, layers) as stands:
            held = [_before(model, batch, stands) for batch in given]
        for number, layer in enumerate(layers):
            for states, calls in held:
                call = _moved(calls[number], device)
                states[0] = layer(states[0].to(device), *call.rest, **call.named).to("cpu")
            if progress:
                progress("layers", (number + 1) / len(layers))
        with _stood_in(model, layers) as stands:
            return [
                each(number, _behind(model, batch, stands, held[number][0].pop().to(device)))
                for number, batch in enumerate(given)
            ]


def _before(model: nn.Module, batch: dict[str, Any], stands: list[StandIn]) -> tuple[list[Tensor], list[Call]]:
    """The hidden states that come to the first layer, and what each layer is called with, on the host."""
    model(**batch, use_cache=False)
    first = stands[0].given
    if first is None or any(stand.given is not first for stand in stands):
        raise InvalidModel(
            f"{type(model).__name__} cannot be run layer by layer: it computes between its layers (pictures do), or "
            "calls them otherwise than one behind the other. Run it batch by batch."
        )
    calls = [_moved(stand.call, torch.device("cpu")) for stand in stands]
    _forget(stands)
    return [first.to("cpu")], calls


def _behind(model: nn.Module, batch: dict[str, Any], stands: list[StandIn], states: Tensor) -> Any:
    """The model's output, were its last layer to give these states."""
    stands[-1].result = states
    try:
        return model(**batch, use_cache=False)
    finally:
        stands[-1].result = None
        _forget(stands)


def _forget(stands: list[StandIn]) -> None:
    for stand in stands:
        stand.given = stand.call = None


@contextmanager
def _stood_in(model: nn.Module, layers: list[nn.Module]) -> Iterator[list[StandIn]]:
    """Stand-ins in the place of the layers, through a journal of its own that is taken back at the end."""
    holder, name = parent_of(model, path_of(model, parent_of(model, path_of(model, layers[0]))[0]))
    stands = [StandIn(layer) for layer in layers]
    journal = Journal(model, Vault("device"))
    try:
        with journal.step("stand in for layers"):
            journal.set(holder, name, nn.ModuleList(stands).train(model.training))
        yield stands
    finally:
        transaction = Transaction(journal)
        transaction.undo(list(journal.frames))
        transaction.commit()


def _layers(stack: nn.Module) -> list[nn.Module]:
    return [parent_of(stack, path)[0] for path, _, role in attention_modules(stack) if role == "attention"]


def _moved(value: Any, device: torch.device) -> Any:
    """The same with its tensors on a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Call):
        return Call(_moved(value.rest, device), _moved(value.named, device))
    if isinstance(value, tuple | list):
        return type(value)(_moved(one, device) for one in value)
    return {key: _moved(one, device) for key, one in value.items()} if isinstance(value, dict) else value


def _device_of(model: nn.Module) -> torch.device:
    return next((tensor.device for tensor in model.parameters() if not tensor.is_meta), torch.device("cpu"))
