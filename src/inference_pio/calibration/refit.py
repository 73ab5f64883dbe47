"""The second factors of decomposed layers, fitted again: to make up for what is lost in the layers before them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from inference_pio.anatomy.side_by_side import SideBySide
from inference_pio.calibration.factors import Factors, layers_of
from inference_pio.calibration.forward import Progress, forward
from inference_pio.calibration.output_pass import some_batches
from inference_pio.calibration.source import Batch, CalibrationSource
from inference_pio.calibration.stood_in import stood_in
from inference_pio.kernels.low_rank import refitted_factor

TOKENS = 16384
"""On a trained model 8,192 lose 4% more, 28,672 take twice the time for 2% less."""


class _Reached(Exception):
    """What is watched has been called: the rest of the forward says nothing that is asked."""


@torch.no_grad()
def refit(
    model: nn.Module, groups: Sequence[SideBySide], factors: Mapping[str, Factors], source: CalibrationSource, *,
    tokens: int = TOKENS, progress: Progress | None = None,
) -> dict[str, Factors]:  # fmt: skip
    """Factors whose `out_of` make up for what is lost before them, one group after the other in the model's order.

    Each group takes two forwards over `tokens` tokens, which end where it stands. One that is given other rows behind
    the layers before it than in the model (a router chose anew), or none at all, stays as it is. Nothing is edited.
    """
    found = dict(factors)
    taken = [one for one in groups if one.name in found]
    batches = some_batches(source, tokens)
    for number, one in enumerate(taken):
        into = layers_of(model, [one], found)[one.name].into
        others = layers_of(model, [other for other in taken if other is not one], found)
        products: list[Tensor] = []
        rows = 0
        for batch in batches:
            wanted = _outputs(model, one, batch)
            with stood_in(model, others):
                given = _input(model, one, batch)
            if wanted is None and given is None:
                continue
            if wanted is None or given is None or wanted.shape[:-1] != given.shape[:-1]:
                products = []
                break
            few = into(given).reshape(-1, into.rank).double()
            added = [wanted.reshape(len(few), -1).double().T @ few, few.T @ few]
            products = [sum(pair) for pair in zip(products, added, strict=True)] if products else added  # type: ignore[misc]
            rows += len(few)
        old = found[one.name]
        if products:
            out_of = refitted_factor(old.out_of, products[0], products[1], rows)
            found[one.name] = dataclasses.replace(old, out_of=out_of)
        if progress:
            progress("refit", (number + 1) / len(taken))
    return found


def _outputs(model: nn.Module, one: SideBySide, batch: Batch) -> Tensor | None:
    """What the model's own layers give, side by side and without their biases; None where it does not call them."""
    given: dict[str, Tensor] = {}

    def note(path: str) -> Any:
        def keep(module: nn.Module, args: Any, output: Tensor) -> None:
            bias = module._parameters["bias"]
            given[path] = output if bias is None else output - bias
            if len(given) == len(one.paths):
                raise _Reached

        return keep

    _until_reached(model, batch, [model.get_submodule(path).register_forward_hook(note(path)) for path in one.paths])
    return torch.cat([given[path] for path in one.paths], -1) if len(given) == len(one.paths) else None


def _input(model: nn.Module, one: SideBySide, batch: Batch) -> Tensor | None:
    given: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        given.append(args[0])
        raise _Reached

    _until_reached(model, batch, [model.get_submodule(one.name).register_forward_pre_hook(keep)])
    return given[0] if given else None


def _until_reached(model: nn.Module, batch: Batch, handles: Sequence[Any]) -> None:
    try:
        forward(model, batch)
    except _Reached:
        pass
    finally:
        for handle in handles:
            handle.remove()
